"""OpenAI's chat completions: answers as they are told. Requests are read by edge/api/requests, which others share."""
