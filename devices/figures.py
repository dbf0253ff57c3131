"""A figure of a profile as in its file: value, unit and source document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

Quantity = Literal["bytes", "bytes/s", "FLOP/s", "OP/s", "watts", "seconds", "degrees"]

# Measured figures are written in the first unit of each.
_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "bytes": {
        "GB": 1e9, "B": 1, "kB": 1e3, "MB": 1e6, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    },
    "bytes/s": {"GB/s": 1e9, "B/s": 1, "kB/s": 1e3, "MB/s": 1e6, "TB/s": 1e12},
    "FLOP/s": {"GFLOP/s": 1e9, "FLOP/s": 1, "TFLOP/s": 1e12, "PFLOP/s": 1e15},
    "OP/s": {"GOP/s": 1e9, "OP/s": 1, "TOP/s": 1e12, "POP/s": 1e15},
    "watts": {"W": 1, "mW": 1e-3},
    "seconds": {"ms": 1e-3, "s": 1, "us": 1e-6},
    "degrees": {"°C": 1},
}  # fmt: skip


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `value` in `unit`, from `document`. Measured figures have no document, but their profile has a date."""

    value: float
    unit: str
    document: str | None = None


def plain(figure: Figure, quantity: Quantity, *, key: str) -> float:
    """The figure in the base unit of `quantity`, such as bytes, seconds or operations a second.

    Raises ValueError, which names `key`, for a unit of another quantity, and for a value below 0 except in degrees.
    """
    units = _UNITS[quantity]
    if figure.unit not in units:
        raise ValueError(f"{key} is in {figure.unit!r}; give it in {', '.join(units)}")
    if not math.isfinite(figure.value) or (figure.value < 0 and quantity != "degrees"):
        raise ValueError(f"{key} is {figure.value:g} {figure.unit}; give a positive number")
    return figure.value * units[figure.unit]


def written(value: float, quantity: Quantity, *, document: str | None = None) -> Figure:
    """The figure of a `value` in the base unit, to twelve digits and in the unit for files."""
    unit, factor = next(iter(_UNITS[quantity].items()))
    return Figure(float(f"{value / factor:.12g}"), unit, document)
