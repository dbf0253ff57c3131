"""Change detection, so that a still scene costs nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 32, 24  # of a thumbnail, small enough to average out a sensor's noise
DEFAULT_THRESHOLD = 0.01  # share of the range: noise is below a tenth of it, a person across the room above it

Thumbnail = NDArray[np.uint8]  # (HEIGHT, WIDTH), grey


def thumbnail(picture: Image.Image) -> Thumbnail:
    """A small grey picture."""
    return np.asarray(picture.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def difference(first: Thumbnail, second: Thumbnail) -> float:
    """The mean absolute difference, as a share of the range from black to white."""
    return float(np.abs(first.astype(np.int16) - second).mean() / 255)


class Changes:
    """Passes images that differ by `threshold` or more from the last one that passed, so slow changes add up."""

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        self.still = 0  # pictures that did not pass
        self._threshold = threshold
        self._last: Thumbnail | None = None

    def passes(self, shown: Thumbnail) -> bool:
        """Whether `shown` is new; the first one is."""
        if self._last is not None and difference(self._last, shown) < self._threshold:
            self.still += 1
            return False
        self._last = shown
        return True
