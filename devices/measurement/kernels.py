"""Minimal ONNX graphs to time ONNX Runtime with: one matrix product.

They are encoded by hand, as devices have no onnx package. A graph file is a protocol buffer, of which a handful of
fields is enough (onnx.proto3, stable since its version 3).
"""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp32", "int8"]

_ELEMENTS = {"fp32": ("MatMul", 1, 1, 1), "int8": ("MatMulInteger", 2, 3, 6)}  # operator; uint8 x int8 gives int32
_IR, _OPSET = 8, 13


def matmul_graph(dtype: Dtype, *, rows: int, inner: int, columns: int, weights: bytes | None = None) -> bytes:
    """An ONNX model of `y = a @ b` with the inputs `a` (rows, inner) and `b` (inner, columns).

    With `weights`, `b` is a constant of these little-endian values, row by row.
    """
    operator, first, second, result = _ELEMENTS[dtype]
    graph = (
        _part(1, _part(1, b"a") + _part(1, b"b") + _part(2, b"y") + _part(4, operator.encode()))
        + _part(2, b"matmul")
        + (b"" if weights is None else _part(5, _constant(b"b", second, weights, inner, columns)))
        + _part(11, _tensor(b"a", first, rows, inner))
        + (_part(11, _tensor(b"b", second, inner, columns)) if weights is None else b"")
        + _part(12, _tensor(b"y", result, rows, columns))
    )
    return _number(1, _IR) + _part(7, graph) + _part(8, _number(2, _OPSET))


def _tensor(name: bytes, element: int, *shape: int) -> bytes:
    sizes = b"".join(_part(1, _number(1, size)) for size in shape)
    return _part(1, name) + _part(2, _part(1, _number(1, element) + _part(2, sizes)))


def _constant(name: bytes, element: int, content: bytes, *shape: int) -> bytes:
    sizes = b"".join(_number(1, size) for size in shape)
    return sizes + _number(2, element) + _part(8, name) + _part(9, content)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
