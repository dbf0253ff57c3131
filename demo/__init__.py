"""The embedded default: digit cards, a drafter and a target trained on them, and the recipe that made both."""
