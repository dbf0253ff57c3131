"""What `cutline keys` makes."""
