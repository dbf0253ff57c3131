"""Digests of images as they cross the cut, the keys of a worker's image cache.

Agent and worker compute them independently, from what was sent and received, so that no client can make a worker cache
an image under the digest of another.
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
    """The digest of an image file, for the cut `image`: SHA-256 over the text `image`, a zero byte and the file."""
    return hashlib.sha256(b"image\0" + data).digest()


def piece_digest(data: bytes) -> bytes:
    """The digest of the strip of a piece of a video, likewise, with the text `piece`: other pixels come of it."""
    return hashlib.sha256(b"piece\0" + data).digest()


def rows_digest(cut: str, wire: Wire, grid: tuple[int, int], rows: Rows) -> bytes:
    """The digest of the boundary `rows` of one image with this `grid`, as received, however they were split up.

    It is SHA-256 over the names of cut and format and the two sides of the grid in decimal, each followed by a zero
    byte, and then the values as little-endian float32, row by row.
    """
    head = "".join(f"{part}\0" for part in (cut, wire, *grid))
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(rows, "<f4").data)
    return digest.digest()


def as_received(rows: Rows, wire: Wire) -> Rows:
    """`rows` encoded as `wire` and decoded again. Raises InputError if the format cannot hold them."""
    if wire is Wire.FLOAT32:
        return rows
    pieces = [decode_tensor(encode_tensor(piece.rows, wire)) for piece in boundary_chunks(rows, wire)]
    return np.concatenate([rows[:0], *pieces])
