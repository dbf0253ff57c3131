"""Videos that come with a question: their frames, decoded in a process of its own that may take so much and no more."""
