"""Ollama's API: its requests as they are read, answers as they are told, and what it lists of models."""
