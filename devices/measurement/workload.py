"""The workload for measuring a model, the same on device and worker: an image, and numbers of rows."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from cutline.models.bundle import Manifest
from cutline.models.images import Pixels, decode_image

ROWS = (1, 8, 64)  # of a step: one token, a short draft, a long one
PROMPT = 256  # rows of a prefill, fewer for a model with a smaller context
BEHIND = 128  # tokens of context before a step's rows, fewer for a model with a smaller context


def row_counts(context: int) -> tuple[tuple[int, ...], int]:
    """The numbers of rows to measure for a model's `context`, the prompt's last, and the tokens before a step's."""
    behind, prompt = min(BEHIND, context // 2), min(PROMPT, context)
    return (*(rows for rows in ROWS if rows < prompt and behind + rows <= context), prompt), behind


def photograph() -> bytes:
    """A JPEG of 1024 x 768 with smooth shapes and noise, which takes as long to decode as a photograph."""
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((1024, 768), Image.Resampling.BICUBIC)
    noisy = np.asarray(shapes, np.int16) + rng.integers(-8, 9, (768, 1024, 1), np.int16)
    file = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def one_tile(manifest: Manifest) -> Pixels:
    """The Pixels of one tile; of the whole photograph for a family without tiles."""
    family = manifest.family
    pixels = family.preprocess(decode_image(photograph()))
    return Pixels(pixels.values[:1], (0, 0)) if family.takes((0, 0)) else pixels
