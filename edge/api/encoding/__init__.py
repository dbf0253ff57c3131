"""Rows of texts and images by the agent's dual encoder, for whichever API they are asked in."""
