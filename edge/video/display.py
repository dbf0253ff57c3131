"""A decoded frame as it is to be shown: upright, with square pixels."""

from __future__ import annotations

import importlib.util
import struct
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from cutline.errors.extras import missing

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

QUALITY = 95  # of a frame's JPEG
MAX_RATIO = 8.0  # of a pixel's sides: television has 32:11 at most; a header with more is broken


def check_video() -> None:
    """Check that PyAV is installed. Raises InputError."""
    if importlib.util.find_spec("av") is None:
        raise missing("videos and cameras need PyAV", "camera")


def pixel_ratio(container: InputContainer) -> float:
    """The aspect ratio (width by height) of a pixel."""
    stream: Any = container.streams.video[0]
    ratio = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_RATIO <= ratio <= MAX_RATIO else 1.0


def as_jpeg(frame: VideoFrame, ratio: float) -> bytes:
    """A frame as a JPEG file as displayed: upright, with square pixels, and no side made smaller."""
    picture = frame.to_image()
    if ratio != 1.0:
        width, height = picture.size
        stretched = (round(width * ratio), height) if ratio > 1.0 else (width, round(height / ratio))
        picture = picture.resize(stretched, Image.Resampling.BICUBIC)
    out = BytesIO()
    _turned(picture, frame).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _turned(picture: Image.Image, frame: VideoFrame) -> Image.Image:
    """An image transformed by its frame's display matrix, to the nearest quarter turn and mirroring."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return picture
    across, down, leaning, sinking, *_ = struct.unpack("=ii4xii", bytes(found)[:20])
    # A pixel at (x, y) is shown at (across x + leaning y, down x + sinking y).
    if abs(down) + abs(leaning) > abs(across) + abs(sinking):
        picture, across, sinking = picture.transpose(Image.Transpose.TRANSPOSE), leaning, down
    if across < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if sinking < 0 else picture
