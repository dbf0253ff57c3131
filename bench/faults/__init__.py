"""What faults of links and workers do to answers."""
