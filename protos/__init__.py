"""The wire between a device and its workers: the protocol, plain types of its messages, and clients.

`v1/` holds the generated stubs.
"""
