"""The agent over HTTP: OpenAI's and Ollama's APIs, what operators ask for, the page, and bundles for devices."""
