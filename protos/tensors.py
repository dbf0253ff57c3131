"""Tensors on the wire: dense little-endian bytes, an allowed type, a shape. Nothing that arrives is trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.errors import InputError
from cutline.protos.v1 import worker_pb2 as pb

CHUNK = 1 << 20  # bytes a message at most: larger ones double the latency of an asyncio server

_TYPES: dict[pb.Tensor.Type, np.dtype[Any]] = {
    pb.Tensor.FLOAT32: np.dtype("<f4"),
    pb.Tensor.FLOAT16: np.dtype("<f2"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def encode_tensor(array: NDArray[Any]) -> pb.Tensor:
    """`array` (float32 or float16) for the wire."""
    dtype = array.dtype.newbyteorder("<")
    return pb.Tensor(type=_NAMES[dtype], shape=array.shape, data=np.ascontiguousarray(array, dtype).tobytes())


def decode_tensor(tensor: pb.Tensor) -> NDArray[Any]:
    """The array in `tensor`: of an allowed type, finite, exactly as long as its shape says. Raises InputError."""
    dtype = _TYPES.get(tensor.type)
    if dtype is None:
        raise InputError(f"tensor type {tensor.type} is not taken; send one of {', '.join(map(str, _NAMES))}")
    if len(tensor.data) > CHUNK:
        raise InputError(f"a tensor of {len(tensor.data)} bytes is too long; send at most {CHUNK} a message")
    if not 1 <= len(tensor.shape) <= 4 or 0 in tensor.shape:
        raise InputError(f"a tensor of shape {list(tensor.shape)[:5]} is not taken; send 1 to 4 dimensions, none empty")
    if math.prod(tensor.shape) * dtype.itemsize != len(tensor.data):
        raise InputError(f"a tensor of shape {list(tensor.shape)} and {dtype} cannot have {len(tensor.data)} bytes")
    array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    if not np.isfinite(array).all():
        raise InputError("a tensor holds values that are not finite")
    return array
