"""Tensors on the wire, in one of five formats. Received tensors are validated.

docs/reference/wire.md has what each format costs. A row runs along the last dimension. Each row is encoded
independently of the rows beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.core.wire import Wire, data_bytes, scale_bytes
from cutline.errors import InputError, VersionMismatch
from cutline.protos.v1 import worker_pb2 as pb

Floats = NDArray[np.float32]

CHUNK = 1 << 20  # bytes a message at most: larger ones double the latency of an asyncio server

_LEVELS = {Wire.INT8: 127, Wire.INT4: 7}  # steps from zero to the largest value of a row
_TYPES = {pb.Tensor.Type.Value(wire.name): wire for wire in Wire}

_SCALE = np.dtype("<f4")
_MIN_SCALE = np.finfo(np.float32).smallest_normal  # a smaller scale loses digits, and one of 0 would divide by 0
_MAX_BFLOAT16 = 255 * 2.0**120
# The largest magnitude that may be sent. A scale times its levels rounds, so it gets bfloat16's distance to infinity.
_MAX_MAGNITUDE = dict.fromkeys(Wire, _MAX_BFLOAT16) | {
    Wire.FLOAT32: float(np.finfo(np.float32).max),
    Wire.FLOAT16: float(np.finfo(np.float16).max),
}


def wire_of(tensor: pb.Tensor) -> Wire:
    """The format of `tensor`. Raises InputError if it has none, VersionMismatch for one of a later version."""
    wire = _TYPES.get(tensor.type)
    if wire is None:
        kind = VersionMismatch if tensor.type else InputError
        raise kind(f"tensor type {tensor.type} is not taken; send one of {', '.join(Wire)}")
    return wire


def encode_tensor(values: NDArray[Any], wire: Wire = Wire.FLOAT32) -> pb.Tensor:
    """Encode `values` (float32 or float16, of one dimension or more) as `wire`.

    Raises InputError on a value that is not finite, or too large for the format: saturating would silently change an
    answer. Raises TypeError on types that float32 cannot hold.
    """
    values = values.astype(np.float32, order="C", casting="safe", copy=False)
    rows = values.reshape(-1, values.shape[-1])
    peaks = np.abs(rows).max(axis=1, keepdims=True)
    if not (peaks <= _MAX_MAGNITUDE[wire]).all():
        raise InputError(_too_large(float(peaks.max()), wire))
    data, scales = _write(rows, peaks, wire)
    return pb.Tensor(type=wire.name, shape=values.shape, data=data, scales=scales)


def decode_tensor(tensor: pb.Tensor) -> Floats:
    """The values of `tensor`, which may be read-only.

    Raises InputError unless the format is known, all values are finite, and the data has at most CHUNK bytes and the
    length of its shape. The result takes at most 8 * CHUNK bytes.
    """
    wire = wire_of(tensor)
    size = len(tensor.data) + len(tensor.scales)
    if size > CHUNK:
        raise InputError(f"a tensor of {size} bytes is too long; send at most {CHUNK} a message")
    if not 1 <= len(tensor.shape) <= 4 or 0 in tensor.shape:
        raise InputError(f"a tensor of shape {list(tensor.shape)[:5]} is not taken; send 1 to 4 dimensions, none empty")
    *outer, width = tensor.shape
    count = math.prod(outer)
    if count * data_bytes(wire, width) != len(tensor.data):
        raise InputError(f"a tensor of shape {[*outer, width]} and {wire} cannot have {len(tensor.data)} bytes")
    if count * scale_bytes(wire) != len(tensor.scales):
        raise InputError(f"a tensor of {count} rows and {wire} cannot have {len(tensor.scales)} bytes of scales")
    values = _read(tensor, wire, count, width)
    if not np.isfinite(values).all():
        raise InputError("a tensor holds values that are not finite")
    return values.reshape(tuple(tensor.shape))


def _write(rows: Floats, peaks: Floats, wire: Wire) -> tuple[bytes, bytes]:
    """The bytes of `rows` (n, width) and of their scales; `peaks` (n, 1) are the largest magnitudes."""
    match wire:
        case Wire.FLOAT32:
            return rows.astype("<f4", copy=False).tobytes(), b""
        case Wire.FLOAT16:
            return rows.astype("<f2").tobytes(), b""
        case Wire.BFLOAT16:
            bits = rows.view(np.uint32)
            half = 0x7FFF + (bits >> 16 & 1)  # rounds to nearest, ties to even
            return (bits + half >> 16).astype("<u2").tobytes(), b""
        case Wire.INT8 | Wire.INT4:
            steps = np.maximum(peaks / np.float32(_LEVELS[wire]), _MIN_SCALE)
            levels = np.rint(rows / steps).astype(np.int8)
            return (levels if wire is Wire.INT8 else _packed(levels)).tobytes(), steps.astype(_SCALE).tobytes()


def _read(tensor: pb.Tensor, wire: Wire, count: int, width: int) -> Floats:
    """The values of `tensor`, whose lengths are checked already. They may be infinite or NaN. Raises InputError."""
    match wire:
        case Wire.FLOAT32:
            return np.frombuffer(tensor.data, "<f4").astype(np.float32, copy=False)
        case Wire.FLOAT16:
            return np.frombuffer(tensor.data, "<f2").astype(np.float32)
        case Wire.BFLOAT16:
            return (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case Wire.INT8 | Wire.INT4:
            steps = np.frombuffer(tensor.scales, _SCALE).astype(np.float32).reshape(count, 1)
            if not ((steps >= 0) & (steps < np.inf)).all():
                raise InputError("a tensor has scales that are negative or not finite")
            levels = np.frombuffer(tensor.data, np.int8).reshape(count, -1)
            with np.errstate(over="ignore"):  # a finite scale may overflow the values; the caller checks
                return (levels if wire is Wire.INT8 else _unpacked(levels, width)) * steps


def _too_large(peak: float, wire: Wire) -> str:
    if not math.isfinite(peak):
        return "a tensor to send holds values that are not finite; the model that computed it is broken"
    wider = Wire.BFLOAT16 if wire is Wire.FLOAT16 else Wire.FLOAT32
    return f"a value of magnitude {peak:.6g} is too large for {wire} ({_MAX_MAGNITUDE[wire]:.6g} at most); send {wider}"


def _packed(levels: NDArray[np.int8]) -> NDArray[np.int8]:
    """`levels` packed two to a byte, the first in the low half; a row of odd width is padded with zero."""
    even: NDArray[np.int8] = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
    return even[:, 0::2] & 0xF | even[:, 1::2] << 4


def _unpacked(pairs: NDArray[np.int8], width: int) -> NDArray[np.int8]:
    levels = np.stack([pairs << 4 >> 4, pairs >> 4], axis=-1).reshape(len(pairs), -1)  # shifts that keep the sign
    if levels[:, width:].any():
        raise InputError(f"a row of {width} int4 values must end in a half byte of zero")
    return levels[:, :width]
