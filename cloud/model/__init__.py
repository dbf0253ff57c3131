"""The target on torch: its layers, loaded, run and measured."""
