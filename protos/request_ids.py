"""The id by which one request is found in every log: the client's own, or one that the agent makes."""

from __future__ import annotations

import re
import secrets

from cutline.errors import InputError

MOST = 128  # characters
TRACE_KEY = "traceparent"  # W3C's, of an HTTP header and of a call's metadata

_ID = re.compile(rf"[A-Za-z0-9._:@/+=-]{{1,{MOST}}}")  # nothing that a log would have to escape
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(16)


def is_request_id(text: str) -> bool:
    """Whether `text` may name a request."""
    return _ID.fullmatch(text) is not None


def check_request_id(text: str) -> str:
    """`text`, which names a request, or none where it is empty. Raises InputError."""
    if text and not is_request_id(text):
        raise InputError(f"a request's id has 1 to {MOST} letters, digits or any of ._:@/+=-; this one does not")
    return text


def trace_id(traceparent: str) -> str | None:
    """The trace that a W3C `traceparent` belongs to; None where it is not one."""
    found = _TRACE.fullmatch(traceparent)
    return None if found is None else found[1]
