"""Processes and signals: commands that run until they are stopped, and those that start others."""
