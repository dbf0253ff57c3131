"""How a picture becomes an image tower's input: resized, cropped to a square, normalised.

The arithmetic is that of transformers' image processors of CLIP and SigLIP (PIL backend), bit for bit.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.images import Size, normalised

Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Spread = Annotated[float, msgspec.Meta(gt=0)]


class ImageRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An image is resized to `shortest_edge` in proportion, or to `stretched` (width, height); one of them is given.

    Then its middle of `side` x `side` pixels is taken. `resample` is Pillow's number of a filter.
    """

    side: Side
    shortest_edge: Side | None = None
    stretched: tuple[Side, Side] | None = None
    resample: Literal[0, 1, 2, 3, 4, 5] = 3
    mean: tuple[float, float, float]
    std: tuple[Spread, Spread, Spread]

    def __post_init__(self) -> None:
        if (self.shortest_edge is None) == (self.stretched is None):
            raise ValueError("an image is resized either by its shortest edge, or to a width and a height")
        if min(self.stretched or (self.shortest_edge or 0,)) < self.side:
            raise ValueError(f"what an image is resized to is smaller than the tower's {self.side} pixels")

    def resized(self, size: Size) -> Size:
        """The width and height to which an image of `size` is resized."""
        if self.shortest_edge is None:
            assert self.stretched is not None
            return self.stretched
        width, height = size
        short, long = min(size), max(size)
        longest = int(self.shortest_edge * long / short)  # rounded as in the original
        return (self.shortest_edge, longest) if width <= height else (longest, self.shortest_edge)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """The pixels (1, 3, side, side) of an RGB image."""
        image = image.resize(self.resized(image.size), Image.Resampling(self.resample))
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        square = np.asarray(image.crop((left, top, left + self.side, top + self.side)))
        return normalised(square.transpose(2, 0, 1)[None], self.mean, self.std)
