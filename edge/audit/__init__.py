"""Audits: kept answers that the target is asked about afterwards, and what the gate makes of what they show."""
