"""Images, from a stranger's bytes to the pixels that a vision tower takes.

    bytes ── decode_image ──► RGB picture ── preprocess ──► Pixels: tiles for the tower
      └────────────── shrink ◄──┘   fewer bytes that give the same Pixels: what the edge uploads

The arithmetic is that of SmolVLM's image processor (transformers, PIL backend): fit the longest edge, stretch to whole
tiles, rescale, normalise. How many tiles an image makes follows from the ImageSpec and the image's shape, never from
its size in pixels: at most `grid_limit(spec)` squared and one more.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cutline.errors import ImageError
from cutline.models.bundle import ImageSpec

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
    """What the tower takes: `tiles` of float32 (n, 3, tile, tile), row by row, the whole image last.

    `rows` and `cols` count the tiles that the image was split into; both are 0 where it stayed in one piece (n = 1).
    """

    tiles: NDArray[np.float32]
    rows: int
    cols: int

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols), as the prompt wants it."""
        return self.rows, self.cols


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
        fault = _size_fault(opened.size) or _kind_fault(opened, data)
        if fault is not None:
            raise ImageError(fault)
        return _load(opened)


def preprocess(image: Image.Image, spec: ImageSpec) -> Pixels:
    """An RGB image as the tower's pixels, the same bits as transformers' SmolVLMImageProcessorPil gives.

    `spec.longest_edge` is at most 4096, as in every published SmolVLM.
    """
    first, second = _sizes(image.size, spec)
    stretched = _resize(_resize(image, first), second)
    if second == (spec.tile, spec.tile):
        return Pixels(_normalise(_tiles(stretched, spec.tile), spec), 0, 0)
    whole = _resize(stretched, (spec.tile, spec.tile))
    tiles = np.concatenate([_tiles(stretched, spec.tile), _tiles(whole, spec.tile)])
    return Pixels(_normalise(tiles, spec), rows=second[1] // spec.tile, cols=second[0] // spec.tile)


def grid_limit(spec: ImageSpec) -> int:
    """The most rows, and the most columns, that `preprocess` splits an image into; 0 where it never splits."""
    return math.ceil(_even(spec.longest_edge) / spec.tile) if spec.split else 0


def shrink(data: bytes, image: Image.Image, spec: ImageSpec) -> bytes:
    """The fewest bytes that `decode_image` and `preprocess` turn into exactly the Pixels of `image`.

    `image` is `decode_image(data)`. The choice is between `data` and the image already fitted to `spec.longest_edge`,
    in lossless WebP (smaller than PNG on cards and photographs alike). The fitted image counts only where it has no
    more pixels than `image`, where `decode_image` takes its size, and where fitting it again changes nothing, which
    fails for a square image and an odd `longest_edge`; otherwise `data` is the answer.
    """
    first, second = _sizes(image.size, spec)
    larger = math.prod(first) > math.prod(image.size)
    if larger or _size_fault(first) is not None or _sizes(first, spec) != (first, second):
        return data
    return min(data, _lossless(_resize(image, first)), key=len)


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


def _size_fault(size: Size) -> str | None:
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


def _sizes(size: Size, spec: ImageSpec) -> tuple[Size, Size]:
    """The two sizes that `preprocess` resizes to: the longest edge fitted, then whole tiles."""
    first = _fitted(size, spec.longest_edge)
    return first, _whole_tiles(first, spec.tile) if spec.split else (spec.tile, spec.tile)


def _fitted(size: Size, longest: int) -> Size:
    """`size` with its longest edge at `longest`, the other one even and in proportion."""
    width, height = size
    ratio = width / height  # divided by or multiplied with exactly as the original does: the rounding shows
    if width >= height:
        return longest, max(_even(int(longest / ratio)), 1)
    return max(_even(int(longest * ratio)), 1), longest


def _whole_tiles(size: Size, tile: int) -> Size:
    """`size` with each edge raised to a multiple of `tile`, the shorter one after the longer."""
    width, height = size
    ratio = width / height
    if width >= height:
        width = _multiple(width, tile)
        return width, _multiple(int(width / ratio), tile)
    height = _multiple(height, tile)
    return _multiple(int(height * ratio), tile), height


def _even(number: int) -> int:
    return number + number % 2


def _multiple(number: int, of: int) -> int:
    return math.ceil(number / of) * of


def _resize(image: Image.Image, size: Size) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)


def _tiles(image: Image.Image, tile: int) -> NDArray[np.uint8]:
    """The image cut into tiles, row by row: uint8 (n, 3, tile, tile)."""
    width, height = image.size
    cut = np.asarray(image).reshape(height // tile, tile, width // tile, tile, 3)
    return cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, tile, tile)


def _normalise(tiles: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """Bytes to the tower's range. A channel has 256 values, so they are worked out once and looked up."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    channels = [
        np.take((scaled - np.float32(mean)) / np.float32(std), tiles[:, channel])
        for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True))
    ]
    return np.stack(channels, axis=1)


def _lossless(image: Image.Image) -> bytes:
    out = BytesIO()
    options: dict[str, Any] = {
        "lossless": True,
        "quality": 0,
    }  # the quickest effort; more gains 2% at ten times the time
    image.save(out, "WEBP", **options)
    return out.getvalue()
