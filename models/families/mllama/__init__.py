"""Mllama: pictures beside the prompt, on a canvas of tiles."""
