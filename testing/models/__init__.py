"""Hugging Face folders with random weights, changed manifests, and what transformers makes of the same folders."""
