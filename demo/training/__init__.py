"""What the demo's models learn from: scenes, conversations about them, and the rows that a step takes."""
