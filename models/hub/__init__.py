"""Models by name: weights pulled from a hub, bundles pulled from who serves them, and the folder that keeps both."""
