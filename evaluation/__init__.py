"""How good answers are on somebody's own questions: who is right, how soon, and at what cost, mode by mode."""
