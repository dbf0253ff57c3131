"""What every room shares, each once: what a request says, and small tools for files, journals, processes and ranges."""
