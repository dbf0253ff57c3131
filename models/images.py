"""Images, from a stranger's bytes to the pixels that a vision tower takes.

    bytes ── decode_image ──► RGB picture ── Family.preprocess ──► Pixels for the tower
      └────────── Family.shrink ◄──┘   fewer bytes that give the same Pixels: what the edge uploads

This module decodes; how a picture becomes pixels is each family's own arithmetic (`cutline.models.families`).
"""

from __future__ import annotations

import functools
import importlib.util
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,  # noqa: F401 - like the next, registers its format: for one that is not, Pillow loads all it has
    Image,
    ImageOps,
    WebPImagePlugin,  # noqa: F401
)
from PIL.JpegImagePlugin import JpegImageFile

from cutline.errors import ImageError

TRAVELLING = ("JPEG", "PNG", "WEBP")  # what goes to a worker, which reads no more than that
FORMATS = (*TRAVELLING, "AVIF", "BMP", "GIF", "HEIF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
REDUCTION = 2  # on a side, of a JPEG with more pixels than that: its decoder skips what is not wanted
MAX_MEMORY = 16 * MAX_PIXELS  # bytes that decoding may take: a WebP of the most pixels does
MIN_SIDE = 8
MAX_ASPECT = 20
MAX_SCANS = 64  # at MAX_PIXELS, fewer at more: encoders write about ten, and one of 14 bytes can cost 15 ms there
MAX_SEGMENTS = 4096

_JPEG = b"\xff\xd8"  # how one begins
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_HEIC = re.compile(rb"(?s).{4}ftyp(?:he[iv][cxms]|(?:mif1|msf1).{0,48}?heic)")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # in EXIF: width and height change places
_LOADED = {"WEBP": 16, "AVIF": 16, "HEIF": 16}  # bytes that a pixel takes while it is decoded, as measured; else 4
_STRIP = 1 << 20  # pixels that are converted at a time

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What the tower takes of one image: `values` float32 (n, ...), tiles or patches as its family has them.

    `grid` counts rows and columns of these, as the prompt wants it.
    """

    values: NDArray[np.float32]
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before it is decoded.

    `size` (width, height) is what it becomes, upright; a PNG may tell only behind its pixels that it is turned. A JPEG
    that is `reduced` is decoded at half its width and height. `memory` bytes are needed to decode it.
    """

    format: str
    size: Size
    reduced: bool
    memory: int

    @property
    def travels(self) -> bool:
        """Whether a worker reads the file as it is."""
        return self.format in TRAVELLING and not self.reduced


def read_header(data: bytes, formats: tuple[str, ...] = FORMATS) -> Header:
    """What a file of one of the `formats` will be and take. Nothing is decoded. Raises ImageError as `decode_image`."""
    with warnings.catch_warnings():
        # Pillow warns of bombs and broken metadata; what matters of that is raised here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _read(data, formats)


def decode_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture in a file of one of the `formats` as plain RGB, upright, transparency laid on white.

    Of a GIF it is the first; HEIC needs the plugin of the extra `heic`. `data` is hostile: its size, dimensions, kind,
    number of JPEG scans and what decoding takes are checked before anything is decoded. Raises ImageError, whose text
    never repeats anything of Pillow's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        header = _read(data, formats)
        opened = _open(
            data, formats
        )  # anew: Pillow keeps what metadata it found before the pixels, and may look behind
        if header.reduced:
            opened.draft(None, (opened.width // REDUCTION, opened.height // REDUCTION))
        return _load(opened)


def _read(data: bytes, formats: tuple[str, ...]) -> Header:
    if not data:
        raise ImageError("the image is empty; give a JPEG, PNG or WebP file")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image file is over {MAX_BYTES >> 20} MiB; save it smaller")
    # Pillow reads every segment on opening, so these are counted before.
    scans = _scans(data) if data.startswith(_JPEG) else 0
    opened = _open(data, formats)
    jpeg = isinstance(opened, JpegImageFile)  # a phone's may be MPO, one with further pictures behind it
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
    """Read the header alone."""
    known = [one for one in formats if one != "HEIF"]
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
    """Whether the plugin is there; it is loaded with the first such picture."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _orientation(opened: Image.Image) -> int:
    """As the header has it. A PNG's own method would decode it first, to look behind its pixels too."""
    try:
        return int(Image.Image.getexif(opened).get(_ORIENTATION, 1))
    except Exception:  # broken metadata may raise anything
        raise _damaged() from None


def _memory(opened: Image.Image, pixels: int, scans: int) -> int:
    """Bytes that it takes to make `pixels` of a file."""
    loaded = _LOADED.get(opened.format or "", 4) * pixels
    if isinstance(opened, JpegImageFile) and (scans > 1 or "progressive" in opened.info):
        # All coefficients are held until the last scan is read: two bytes each, fewer of a channel that is halved.
        shares = [across * down for _, across, down, _ in opened.layer]
        most = max(layer[1] for layer in opened.layer) * max(layer[2] for layer in opened.layer)
        loaded += 2 * opened.width * opened.height * sum(shares) // most
    return max(loaded, 8 * pixels)  # of which half is the result, beside what it is converted or turned from


def _load(opened: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(opened, in_place=True)
        image = _plain(opened)
    except Exception:  # a decoder may raise anything on bytes made to break it
        raise _damaged() from None
    image.info.clear()  # profiles and comments would ride along into what is uploaded
    return image


def _plain(opened: Image.Image) -> Image.Image:
    """The picture as RGB on white, strip by strip: whole, each step would take as much memory again."""
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
    """What is wrong with an image of `size` (width, height), in words; None if it is taken."""
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
    if opened.format == "PNG" and data[24] == 16:  # the header's bit depth: Pillow would drop the low bits unasked
        return "the image has 16 bits a channel; save it with 8"
    if opened.mode not in MODES:
        return f"the image is {opened.mode}; save it as RGB"
    if opened.format in ("PNG", "WEBP", "AVIF") and getattr(opened, "is_animated", False):
        return "the image is animated; give a single frame"
    return None


def _scans(data: bytes) -> int:
    """The scans of a JPEG. Walks its markers as libjpeg does, up to the end of the first image. Raises ImageError."""
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
    """Bytes (n, 3, height, width) to the tower's range. A channel has 256 values, worked out once and looked up."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    values = np.empty(tiles.shape, np.float32)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        values[:, channel] = np.take((scaled - np.float32(middle)) / np.float32(spread), tiles[:, channel])
    return values


def lossless(image: Image.Image) -> bytes:
    """The image as a lossless WebP file."""
    out = BytesIO()
    options: dict[str, Any] = {
        "lossless": True,
        "quality": 0,
    }  # the quickest effort; more gains 2% at ten times the time
    image.save(out, "WEBP", **options)
    return out.getvalue()


def as_png(image: Image.Image) -> bytes:
    """The image as a PNG file: larger than `lossless`, of any width, and read by everybody."""
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
