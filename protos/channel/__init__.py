"""Connections between agents and workers: addresses, certificates, tokens, keepalive."""
