"""What a model is: its bundle, its layer line, its pictures and prompts, and how its next token is chosen."""
