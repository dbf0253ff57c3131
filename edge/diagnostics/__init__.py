"""Diagnoses and measures a device: its faults, the speed of models on it, and its link."""
