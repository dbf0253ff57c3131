"""A node that answers questions about a camera's pictures; what it decides needs no ROS, only `node` does."""
