"""What a drafter shares with its target, and how it drafts where that is not the tokens."""
