"""The agent over HTTP: OpenAI's chat completions, what operators ask for, and the page."""
