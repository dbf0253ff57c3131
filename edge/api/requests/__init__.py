"""A request's body, from bytes that nobody trusts to a question."""
