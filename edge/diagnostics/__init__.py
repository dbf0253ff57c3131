"""A device looked at and measured: what is wrong with it, how fast models run on it, and how its link is."""
