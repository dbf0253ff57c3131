"""Files: whole or not at all, sealed, and journals that grow line by line."""
