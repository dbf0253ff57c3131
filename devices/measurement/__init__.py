"""Measurements of a machine: rates of matrix products, working providers, sustained speed."""
