"""Names of what comes with Cutline: which one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` with the known name that `name` begins, or that is most like it; empty without one."""
    names = sorted(known)
    begun = [one for one in names if len(name) > 1 and one.startswith(name.lower())]
    alike = difflib.get_close_matches(name.lower(), names, n=1)
    return next((f" (did you mean {one}?)" for one in (*begun, *alike)), "")
