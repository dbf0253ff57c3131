"""`cutline plan`: what it is given, and how a plan looks."""
