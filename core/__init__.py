"""The small tools that several rooms share, each once: files that are whole or not there."""
