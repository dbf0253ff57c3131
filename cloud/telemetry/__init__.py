"""What a worker shows of itself: metrics, logs and traces, and never a word of a session's content."""
