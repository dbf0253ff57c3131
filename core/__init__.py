"""The small tools that several rooms share, each once: whole files, seals, journals of long work, tied processes,
libraries kept quiet."""
