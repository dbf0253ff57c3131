"""The names under which a worker keeps images from one session to the next: hashes of what crossed the cut.

Agent and worker both work them out, each from what it sent or received, so that nobody can have a worker keep an image
under another one's name.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cutline.core.wire import Wire
from cutline.protos.messages import boundary_chunks
from cutline.protos.tensors import decode_tensor, encode_tensor

Rows = NDArray[np.float32]  # (n, width)


def image_digest(data: bytes) -> bytes:
    """Of an image file as it is sent, at the cut `image`: SHA-256 over the word `image`, a zero byte and the file."""
    return hashlib.sha256(b"image\0" + data).digest()


def rows_digest(cut: str, wire: Wire, grid: tuple[int, int], rows: Rows) -> bytes:
    """Of the boundary of one image that became `grid`, as received: whatever the messages that it came in.

    SHA-256 over the cut's name, the format's, both sides of the grid as decimals, each with a zero byte behind it, and
    then the values as little-endian float32, row by row.
    """
    head = "".join(f"{part}\0" for part in (cut, wire, *grid))
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(rows, "<f4").data)
    return digest.digest()


def as_received(rows: Rows, wire: Wire) -> Rows:
    """What a receiver makes of `rows` that travel as `wire`. Raises InputError if the format cannot hold them."""
    if wire is Wire.FLOAT32:
        return rows
    pieces = [decode_tensor(encode_tensor(piece.rows, wire)) for piece in boundary_chunks(rows, wire)]
    return np.concatenate([rows[:0], *pieces])
