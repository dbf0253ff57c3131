"""Cameras, videos and folders: frames to ask about, and a spool for while no worker answers."""
