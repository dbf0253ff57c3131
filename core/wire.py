"""The wire formats of boundary values, and the bytes of a row.

docs/reference/wire.md has what each format costs in accuracy.
"""

from __future__ import annotations

import enum


class Wire(enum.StrEnum):
    """The format of values on the wire; its members are named as in the .proto."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"
    INT8 = "int8"  # one scale a row
    INT4 = "int4"  # one scale a row, two values a byte


_BITS = {Wire.FLOAT32: 32, Wire.FLOAT16: 16, Wire.BFLOAT16: 16, Wire.INT8: 8, Wire.INT4: 4}
# A scale is a float32: a float16 has too small a range, and a row has hundreds of values to share the cost.
_SCALE_BYTES = {Wire.INT8: 4, Wire.INT4: 4}


def bytes_per_row(wire: Wire, width: int) -> int:
    """Bytes of a row of `width` values with its scale, without the message's own overhead."""
    return data_bytes(wire, width) + scale_bytes(wire)


def data_bytes(wire: Wire, width: int) -> int:
    """Bytes of a row of `width` values, without its scale."""
    return (width * _BITS[wire] + 7) // 8


def scale_bytes(wire: Wire) -> int:
    """Bytes of a row's scale; 0 for formats without one."""
    return _SCALE_BYTES.get(wire, 0)
