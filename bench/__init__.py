"""Measurements, side by side in one run; METHODOLOGY.md says how. Not installed with the package."""
