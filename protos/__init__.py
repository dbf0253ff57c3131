"""The wire: `v1/` holds the protocol and its generated stubs, `messages` their plain types."""
