"""The id by which one request is found in every log: the client's own, or one that the agent makes."""

from __future__ import annotations

import re
import secrets

TRACE_KEY = "traceparent"  # W3C's, of an HTTP header and of a call's metadata

_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(16)


def trace_id(traceparent: str) -> str | None:
    """The trace that a W3C `traceparent` belongs to; None where it is not one."""
    found = _TRACE.fullmatch(traceparent)
    return None if found is None else found[1]
