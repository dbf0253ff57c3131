"""One answer in the making: the question, what the models take of it, tokens and their text, the gate, the result."""
