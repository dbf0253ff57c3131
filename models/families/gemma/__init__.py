"""Models with a decoder of the Gemma line."""
