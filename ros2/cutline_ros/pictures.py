"""A camera's picture as a file: the rows of a `sensor_msgs/Image`, of 8 bits a channel, as JPEG or PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

import cutline

# Channels of a pixel, and where red, green and blue are among them. An alpha channel says nothing of what a camera saw.
_ENCODINGS: dict[str, tuple[int, tuple[int, ...]]] = {
    "mono8": (1, (0,)),
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPicture:
    """`height` rows of `width` pixels; a row takes `step` bytes of `data`, its padding included.

    The order of bytes in a number, which the message tells, says nothing of channels of one byte.
    """

    width: int
    height: int
    encoding: str
    step: int
    data: bytes | memoryview

    def file(self, quality: int) -> bytes:
        """A JPEG of this quality, or a PNG, which loses nothing, at 0. Raises cutline.ImageError."""
        found = _ENCODINGS.get(self.encoding)
        if found is None:
            raise cutline.ImageError(
                f"pictures in {self.encoding[:40]!r} are not taken; have the camera give one of {', '.join(_ENCODINGS)}"
            )
        channels, order = found
        row = self.width * channels
        if self.width < 1 or self.height < 1 or self.step < row or len(self.data) != self.step * self.height:
            raise cutline.ImageError(
                f"a picture of {self.width} x {self.height} in {self.encoding} has {len(self.data)} bytes in rows of "
                f"{self.step}; its message is broken"
            )
        rows = np.frombuffer(self.data, np.uint8).reshape(self.height, self.step)[:, :row]
        pixels = rows.reshape(self.height, self.width, channels)[:, :, list(order)]
        file = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))
        if quality:
            image.save(file, "JPEG", quality=quality)
        else:
            image.save(file, "PNG", compress_level=1)
        return file.getvalue()
