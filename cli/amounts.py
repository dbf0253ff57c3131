"""Amounts with a unit, as options have them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cutline.errors import InputError

SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def amount(option: str, given: str, units: Mapping[str, float]) -> float:
    """A positive number with one of the units, such as `2s`. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", given)
    if found is None or found[2] not in units or float(found[1]) <= 0:
        raise InputError(f"{option} is {given}; give a number and {', '.join(units)}, such as 2{list(units)[1]}")
    return float(found[1]) * units[found[2]]
