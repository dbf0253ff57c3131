"""Who may use a worker, and how much of it."""
