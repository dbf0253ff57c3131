"""Models of OpenBMB's MiniCPM line."""
