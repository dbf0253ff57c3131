"""Clusters of workers: Ray places them, a controller restarts and scales them, a directory lists them for agents."""
