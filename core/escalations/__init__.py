"""What the target answered, kept for learning with consent: entries in files, by tenant, bounded, sealed by a key."""
