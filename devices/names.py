"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The text ` (did you mean ...?)` with the known name that begins with `name`, or is most similar; else ""."""
    names = sorted(known)
    completed = [other for other in names if len(name) > 1 and other.startswith(name.lower())]
    similar = difflib.get_close_matches(name.lower(), names, n=1)
    return next((f" (did you mean {other}?)" for other in (*completed, *similar)), "")
