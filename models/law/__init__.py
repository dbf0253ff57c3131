"""The law of the next token: noise, sampling, penalties and constraints, the same in NumPy and torch."""
