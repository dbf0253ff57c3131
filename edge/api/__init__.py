"""The agent over HTTP: OpenAI's and Ollama's APIs, what operators ask for, and the page."""
