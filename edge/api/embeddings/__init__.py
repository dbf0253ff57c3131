"""OpenAI's embeddings: rows of texts, and of images, by the agent's dual encoder."""
