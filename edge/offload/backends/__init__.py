"""The backends, which append to a generation: the drafter, a worker of the target, an OpenAI-compatible upstream."""
