"""A machine measured: rates of matrix products, providers that work, speed that lasts."""
