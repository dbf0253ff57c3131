"""What this machine has and feels: cores, memory, power and heat."""
