"""OpenAI's Responses: requests as they are read, answers as they are told, and those that are kept to go on from."""
