"""Models of the Qwen-VL line."""
