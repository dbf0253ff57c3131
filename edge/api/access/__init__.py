"""Who may use the agent over HTTP, and how much of it."""
