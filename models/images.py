"""Decodes untrusted image files.

    bytes ── decode_image ──► RGB picture ── Family.preprocess ──► Pixels for the tower
      └────────── Family.shrink ◄──┘   fewer bytes with the same Pixels, for the upload

How a picture becomes Pixels is each family's own arithmetic (`cutline.models.families`).
"""

from __future__ import annotations

import functools
import importlib.util
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,  # noqa: F401 - registers its format, as the next; for an unknown one Pillow imports every plugin
    Image,
    ImageOps,
    WebPImagePlugin,  # noqa: F401
)
from PIL.JpegImagePlugin import JpegImageFile

from cutline.errors import ImageError

TRAVELLING = ("JPEG", "PNG", "WEBP")  # the formats that a worker reads
FORMATS = (*TRAVELLING, "AVIF", "BMP", "GIF", "HEIF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
REDUCTION = 2  # of each side of a larger JPEG, whose decoder can skip detail
MAX_MEMORY = 16 * MAX_PIXELS  # bytes for decoding one image, enough for a WebP of MAX_PIXELS
MIN_SIDE = 8
MAX_ASPECT = 20
MAX_SCANS = 64  # of a JPEG of MAX_PIXELS, fewer if larger: encoders write ten; a scan of 14 bytes can take 15 ms
MAX_SEGMENTS = 4096

_JPEG = b"\xff\xd8"  # its first bytes
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_HEIC = re.compile(rb"(?s).{4}ftyp(?:he[iv][cxms]|(?:mif1|msf1).{0,48}?heic)")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap width and height
_DECODE_BYTES = {"WEBP": 16, "AVIF": 16, "HEIF": 16}  # memory a pixel while decoding, as measured; for others 4
_STRIP = 1 << 20  # pixels converted at a time

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The tower's input for one image: `values` float32 (n, ...), which are tiles or patches by family.

    `grid` has their rows and columns, from which the prompt is built. A piece of a video that stands between the
    marks of one image has a `time`, in positions behind the first piece.
    """

    values: NDArray[np.float32]
    grid: tuple[int, int]
    time: int | None = None


def times_of(images: Sequence[Pixels]) -> tuple[int, ...]:
    """The time of each of the `images`, 0 where it has none; empty where none has any."""
    return () if all(one.time is None for one in images) else tuple(one.time or 0 for one in images)


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before it is decoded.

    `size` (width, height) is that of the decoded image, upright, except for a PNG with its orientation after the
    pixels. A JPEG that is `reduced` is decoded at half its width and height. Decoding takes `memory` bytes.
    """

    format: str
    size: Size
    reduced: bool
    memory: int

    @property
    def travels(self) -> bool:
        """Whether a worker can read the file unchanged."""
        return self.format in TRAVELLING and not self.reduced


def read_image_file(path: Path) -> bytes:
    """The content of an image file, of at most one byte more than is decoded. Raises ImageError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None


def read_header(data: bytes, formats: tuple[str, ...] = FORMATS) -> Header:
    """The header of a file of one of the `formats`, without decoding. Raises ImageError as `decode_image` does."""
    with warnings.catch_warnings():
        # Pillow warns of decompression bombs and broken metadata; what matters is raised as an ImageError.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _read(data, formats)


def decode_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image in a file of one of the `formats` as RGB, upright, with transparency on white.

    Of a GIF it is the first frame; HEIC needs the extra `heic`. `data` is untrusted: its size, dimensions, kind, number
    of JPEG scans and memory are checked before decoding. Raises ImageError, whose text has nothing of Pillow's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = _read(data, formats)
        # Opened again, as Pillow caches the metadata that `_read` found before the pixels, and there may be more after.
        opened = _open(data, formats)
        if header.reduced:
            opened.draft(None, (opened.width // REDUCTION, opened.height // REDUCTION))
        return _load(opened)


def _read(data: bytes, formats: tuple[str, ...]) -> Header:
    if not data:
        raise ImageError("the image is empty; give a JPEG, PNG or WebP file")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image file is over {MAX_BYTES >> 20} MiB; save it smaller")
    # Counted before opening, as Pillow then reads every segment.
    scans = _scans(data) if data.startswith(_JPEG) else 0
    opened = _open(data, formats)
    jpeg = isinstance(opened, JpegImageFile)  # also MPO, a phone's JPEG with further images appended
    if (fault := size_fault(opened.size, jpeg=jpeg) or _kind_fault(opened, data)) is not None:
        raise ImageError(fault)
    width, height = opened.size
    if scans * width * height > MAX_SCANS * MAX_PIXELS:
        raise _too_many_scans()
    reduced = width * height > MAX_PIXELS
    if reduced:
        width, height = -(-width // REDUCTION), -(-height // REDUCTION)
    memory = _memory(opened, width * height, scans)
    if memory > MAX_MEMORY:
        raise ImageError(f"decoding the image takes {memory >> 20} MiB, over {MAX_MEMORY >> 20}; save it smaller")
    size = (height, width) if _orientation(opened) in _TURNED else (width, height)
    return Header("JPEG" if jpeg else opened.format or "", size, reduced, memory)


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Open a file, which reads its header only. Raises ImageError."""
    known = [name for name in formats if name != "HEIF"]
    if "HEIF" in formats and _HEIC.match(data[:128]):
        if not _reads_heic():
            raise ImageError("HEIC needs Cutline's extra `heic` where the agent runs; or save it as JPEG")
        known = ["HEIF"]
    try:
        return Image.open(BytesIO(data), formats=known)
    except Image.DecompressionBombError:
        most = _megapixels(jpeg=data.startswith(_JPEG))
        raise ImageError(f"the image has over {most} megapixels; make it smaller") from None
    except Exception:  # a plugin may raise anything on bytes made to break it
        raise ImageError("this is not a readable image; give a JPEG, PNG or WebP file") from None


@functools.cache
def _reads_heic() -> bool:
    """Whether the HEIC plugin is installed; it is loaded on the first call."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _orientation(opened: Image.Image) -> int:
    """The orientation in the header. PNG's own `getexif` would decode the image, to find metadata after the pixels."""
    try:
        return int(Image.Image.getexif(opened).get(_ORIENTATION, 1))
    except Exception:  # broken metadata may raise anything
        raise _damaged() from None


def _memory(opened: Image.Image, pixels: int, scans: int) -> int:
    """Bytes of memory for decoding a file to so many `pixels`."""
    loaded = _DECODE_BYTES.get(opened.format or "", 4) * pixels
    if isinstance(opened, JpegImageFile) and (scans > 1 or "progressive" in opened.info):
        # All coefficients are held until the last scan: two bytes each, with fewer of them in a subsampled channel.
        shares = [across * down for _, across, down, _ in opened.layer]
        most = max(layer[1] for layer in opened.layer) * max(layer[2] for layer in opened.layer)
        loaded += 2 * opened.width * opened.height * sum(shares) // most
    return max(loaded, 8 * pixels)  # the result, and the image from which it is converted or rotated


def _load(opened: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(opened, in_place=True)
        image = _plain(opened)
    except Exception:  # a decoder may raise anything on bytes made to break it
        raise _damaged() from None
    image.info.clear()  # else profiles and comments would be uploaded too
    return image


def _plain(opened: Image.Image) -> Image.Image:
    """The image as RGB on white, converted in strips: at once each step would need memory for another image."""
    clear = "A" in opened.getbands() or opened.info.get("transparency") is not None
    width, height = opened.size
    image, rows = Image.new("RGB", opened.size), max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = opened.crop((0, top, width, min(top + rows, height)))
        if clear:
            front = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
        image.paste(strip.convert("RGB"), (0, top))
    return image


def size_fault(size: Size, *, jpeg: bool = False) -> str | None:
    """Why an image of `size` (width, height) is refused, as text; None if it is accepted."""
    short, long = sorted(size)
    named = f"the image is {size[0]}x{size[1]} pixels"
    if short * long > MAX_PIXELS * (REDUCTION**2 if jpeg else 1):
        return f"{named}, over {_megapixels(jpeg=jpeg)} megapixels; make it smaller{'' if jpeg else ', or a JPEG'}"
    if short < MIN_SIDE:
        return f"{named}; each side needs at least {MIN_SIDE}"
    if long > MAX_ASPECT * short:
        return f"{named}, one side over {MAX_ASPECT} times the other; crop it"
    return None


def _kind_fault(opened: Image.Image, data: bytes) -> str | None:
    if opened.format == "PNG" and data[24] == 16:  # the header's bit depth; Pillow would silently drop the low bits
        return "the image has 16 bits a channel; save it with 8"
    if opened.mode not in MODES:
        return f"the image is {opened.mode}; save it as RGB"
    if opened.format in ("PNG", "WEBP", "AVIF") and getattr(opened, "is_animated", False):
        return "the image is animated; give a single frame"
    return None


def _scans(data: bytes) -> int:
    """The number of scans of a JPEG's first image, found by its markers as libjpeg does. Raises ImageError."""
    scans, position = 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return scans
        scans += found[1][0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            break
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise _too_many_scans()


def _too_many_scans() -> ImageError:
    return ImageError("the JPEG has too many scans or segments; save it again")


def _damaged() -> ImageError:
    return ImageError("the image is truncated or damaged; save it again")


def _megapixels(*, jpeg: bool) -> int:
    return MAX_PIXELS * (REDUCTION**2 if jpeg else 1) // 10**6


def normalised(
    tiles: NDArray[np.uint8], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Bytes (n, 3, height, width) normalised as float32, by a table of the 256 values of each channel."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    values = np.empty(tiles.shape, np.float32)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        values[:, channel] = np.take((scaled - np.float32(middle)) / np.float32(spread), tiles[:, channel])
    return values


def lossless(image: Image.Image) -> bytes:
    """The image as a lossless WebP file."""
    out = BytesIO()
    # The least effort: more saves 2% in ten times the time.
    options: dict[str, Any] = {"lossless": True, "quality": 0}
    image.save(out, "WEBP", **options)
    return out.getvalue()


def as_png(image: Image.Image) -> bytes:
    """The image as a PNG file, which is larger than `lossless`, of any width, and readable everywhere."""
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
