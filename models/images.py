"""Images, from a stranger's bytes to the pixels that a vision tower takes.

    bytes ── decode_image ──► RGB picture ── Family.preprocess ──► Pixels for the tower
      └────────── Family.shrink ◄──┘   fewer bytes that give the same Pixels: what the edge uploads

This module decodes; how a picture becomes pixels is each family's own arithmetic (`cutline.models.families`).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cutline.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
MIN_SIDE = 8
MAX_ASPECT = 20
MAX_SCANS = 64  # encoders write about ten; a scan of 14 bytes can cost 15 ms at 16 megapixels
MAX_SEGMENTS = 4096

_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What the tower takes of one image: `values` float32 (n, ...), tiles or patches as its family has them.

    `grid` counts rows and columns of these, as the prompt wants it.
    """

    values: NDArray[np.float32]
    grid: tuple[int, int]


def decode_image(data: bytes) -> Image.Image:
    """The picture in a JPEG, PNG or WebP file as plain RGB, upright, transparency laid on white.

    `data` is hostile: its size, dimensions, kind and number of JPEG scans are checked before anything is decoded.
    Raises ImageError, whose text never repeats anything of Pillow's.
    """
    if not data:
        raise ImageError("the image is empty; give a JPEG, PNG or WebP file")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image file is over {MAX_BYTES >> 20} MiB; save it smaller")
    if data.startswith(b"\xff\xd8") and not _few_scans(data):  # Pillow reads every segment on opening, so before that
        raise ImageError("the JPEG has too many scans or segments; save it again")
    with warnings.catch_warnings():
        # Pillow warns of bombs and broken metadata; what matters of that is raised here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        opened = _open(data)
        fault = size_fault(opened.size) or _kind_fault(opened, data)
        if fault is not None:
            raise ImageError(fault)
        return _load(opened)


def _open(data: bytes) -> Image.Image:
    """Read the header alone."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"the image has over {_megapixels()} megapixels; make it smaller") from None
    except Exception:  # a plugin may raise anything on bytes made to break it
        raise ImageError("this is not a readable image; give a JPEG, PNG or WebP file") from None


def _load(opened: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(opened, in_place=True)
        if "A" in opened.getbands() or opened.info.get("transparency") is not None:
            front = opened.convert("RGBA")
            opened = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
        image = opened.convert("RGB")
    except Exception:  # a decoder may raise anything on bytes made to break it
        raise ImageError("the image is truncated or damaged; save it again") from None
    image.info.clear()  # profiles and comments would ride along into what is uploaded
    return image


def size_fault(size: Size) -> str | None:
    """What is wrong with an image of `size` (width, height), in words; None if it is taken."""
    short, long = sorted(size)
    named = f"the image is {size[0]}x{size[1]} pixels"
    if short * long > MAX_PIXELS:
        return f"{named}, over {_megapixels()} megapixels; make it smaller"
    if short < MIN_SIDE:
        return f"{named}; each side needs at least {MIN_SIDE}"
    if long > MAX_ASPECT * short:
        return f"{named}, one side over {MAX_ASPECT} times the other; crop it"
    return None


def _kind_fault(opened: Image.Image, data: bytes) -> str | None:
    if opened.format == "PNG" and data[24] == 16:  # the header's bit depth: Pillow would drop the low bits unasked
        return "the image has 16 bits a channel; save it with 8"
    if opened.mode not in MODES:
        return f"the image is {opened.mode}; save it as RGB"
    # A phone's photograph may be MPO, a JPEG with further pictures behind the one that counts: no animation.
    if opened.format in ("PNG", "WEBP") and getattr(opened, "is_animated", False):
        return "the image is animated; give a single frame"
    return None


def _few_scans(data: bytes) -> bool:
    """Whether a JPEG keeps to MAX_SCANS scans. Walks its markers as libjpeg does, up to the end of the first image."""
    scans, position = 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return True
        scans += found[1][0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            return False
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def _megapixels() -> int:
    return MAX_PIXELS // 10**6


def normalised(
    tiles: NDArray[np.uint8], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Bytes (n, 3, height, width) to the tower's range. A channel has 256 values, worked out once and looked up."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    channels = [
        np.take((scaled - np.float32(middle)) / np.float32(spread), tiles[:, channel])
        for channel, (middle, spread) in enumerate(zip(mean, std, strict=True))
    ]
    return np.stack(channels, axis=1)


def lossless(image: Image.Image) -> bytes:
    """The image as a lossless WebP file."""
    out = BytesIO()
    options: dict[str, Any] = {
        "lossless": True,
        "quality": 0,
    }  # the quickest effort; more gains 2% at ten times the time
    image.save(out, "WEBP", **options)
    return out.getvalue()
