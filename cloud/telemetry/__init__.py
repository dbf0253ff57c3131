"""A worker's metrics, logs and traces, which never contain any of a session's content."""
