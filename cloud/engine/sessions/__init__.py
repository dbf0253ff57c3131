"""The answers that a worker makes: each one's state, and the decisions about it."""
