"""This machine's cores, memory, power, temperature and board."""
