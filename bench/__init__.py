"""Measurements, each beside its baseline in one run.

docs/reference/measurements.md says how. The room is not installed with the package.
"""
