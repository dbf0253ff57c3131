"""What the planner is given of models and machines, and what the agent's own traffic has taught it."""
