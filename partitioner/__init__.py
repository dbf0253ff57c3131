"""Decides which parts of an answer run where: pure functions over frozen data."""
