"""The pictures of a prompt as blocks of tokens, which see each other both ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutline.errors import InputError
from cutline.models.sight import Block


def picture_blocks(image_tokens: NDArray[np.bool_], images: int, most: int) -> tuple[Block, ...]:
    """Where the tokens of so many `images` stand, in a prompt in which `image_tokens` (n,) marks them.

    Raises InputError where they are none that pictures of `most` tokens have.
    """
    edges = np.flatnonzero(np.diff(image_tokens.astype(np.int8), prepend=0, append=0)).tolist()
    blocks = tuple(zip(edges[::2], edges[1::2], strict=True))
    if len(blocks) != images:
        raise InputError(f"the image tokens stand in {len(blocks)} places, and there are {images} images")
    if any(end - begin > most for begin, end in blocks):
        raise InputError(f"more than {most} image tokens stand together, which an image does not have")
    return blocks
