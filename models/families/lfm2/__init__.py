"""Models of Liquid AI's LFM2 line."""
