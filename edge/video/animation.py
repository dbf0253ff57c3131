"""Animated GIF, WebP and PNG files as videos, by Pillow alone."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image

from cutline.edge.video.sampled import MAX_FRAMES, DecodeOrder, SampledVideo
from cutline.errors import ImageError
from cutline.models.images import MAX_PIXELS, Size, lossless, size_fault
from cutline.models.video import Footage

FORMATS = ("GIF", "WEBP", "PNG")
SHORTEST, USUAL = 0.011, 0.1  # seconds: a frame that is to last less lasts as long as browsers show it


def read_animation(data: bytes, order: DecodeOrder) -> SampledVideo:
    """The frames that are looked at, lossless. Raises ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ImageError(f"the video has over {MAX_PIXELS // 10**6} megapixels; make it smaller") from None
        except Exception:  # a plugin may raise anything on bytes made to break it
            raise damaged() from None
        check_size(opened.size)
        lasting = _lasting(opened)
        seconds = sum(lasting)
        indices = order.sample(Footage(len(lasting), len(lasting) / seconds))
        frames = tuple(lossless(_frame(opened, index)) for index in indices)
    return SampledVideo(
        frames=frames,
        times=tuple(sum(lasting[:index]) for index in indices),
        seconds=seconds,
        total=len(lasting),
    )


def _lasting(opened: Image.Image) -> list[float]:
    """How many seconds each frame is shown. Raises ImageError."""
    found = list[float]()
    while True:
        try:
            opened.seek(len(found))
            opened.load()  # of a WebP no time is known before
        except EOFError:
            return found
        except Exception:
            raise damaged() from None
        if len(found) == MAX_FRAMES:
            raise too_many()
        lasts = float(opened.info.get("duration") or 0) / 1000
        found.append(lasts if lasts >= SHORTEST else USUAL)


def _frame(opened: Image.Image, index: int) -> Image.Image:
    """A frame as it is shown, with transparency on white. Raises ImageError."""
    try:
        opened.seek(index)
        front = opened.convert("RGBA")
    except Exception:
        raise damaged() from None
    return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")


def check_size(size: Size) -> None:
    """Raises ImageError for frames of a `size` (width, height) that is too large, too small or too thin."""
    if (fault := size_fault(size)) is not None:
        raise ImageError(fault.replace("the image is", "the video is").replace(", or a JPEG", ""))


def damaged() -> ImageError:
    """The error of a file that breaks off, or was made to break who reads it."""
    return ImageError("the video is truncated or damaged; save it again")


def too_many() -> ImageError:
    """The error of a video that is longer than any is that is sampled."""
    return ImageError(f"the video has over {MAX_FRAMES} frames; send a shorter one")
