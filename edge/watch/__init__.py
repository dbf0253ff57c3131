"""Cameras, films and folders: frames that are worth a question, and a spool for when nobody answers."""
