"""The engine: admits sessions, schedules their rows, runs passes, and confirms tokens."""
