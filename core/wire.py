"""The formats in which boundary values travel, and what a row of them takes.

docs/reference/wire.md has the formats' prices.
"""

from __future__ import annotations

import enum


class Wire(enum.StrEnum):
    """The format in which values travel; its members are named as in the .proto."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"
    INT8 = "int8"  # with a scale a row
    INT4 = "int4"  # with a scale a row, two values a byte


_BITS = {Wire.FLOAT32: 32, Wire.FLOAT16: 16, Wire.BFLOAT16: 16, Wire.INT8: 8, Wire.INT4: 4}
# float32, as two bytes would cover no more than float16's range, and a row has hundreds of values to share the cost.
_SCALE_BYTES = {Wire.INT8: 4, Wire.INT4: 4}


def bytes_per_row(wire: Wire, width: int) -> int:
    """Bytes that a row of `width` values takes, its scale included, the message around it not."""
    return data_bytes(wire, width) + scale_bytes(wire)


def data_bytes(wire: Wire, width: int) -> int:
    """Bytes of the values alone of a row of `width`."""
    return (width * _BITS[wire] + 7) // 8


def scale_bytes(wire: Wire) -> int:
    """Bytes of a row's scale; 0 in the formats that have none."""
    return _SCALE_BYTES.get(wire, 0)
