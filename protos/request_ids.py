"""Ids of requests and traces in logs."""

from __future__ import annotations

import re
import secrets

TRACE_KEY = "traceparent"  # W3C's name of the HTTP header, and of the metadata of calls

_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """A random id for a request."""
    return secrets.token_hex(16)


def trace_id(traceparent: str) -> str | None:
    """The trace id in a W3C `traceparent`; None if that is malformed."""
    found = _TRACE.fullmatch(traceparent)
    return None if found is None else found[1]
