"""LFM2-VL's pictures, whose processor transformers has for torchvision alone: how they are cut, written and resized."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

from cutline.models.families import family_from
from cutline.models.families.lfm2.lfm2vl import Lfm2VL
from cutline.models.families.lfm2.pictures import END, IMAGE, START, THUMBNAIL
from cutline.testing.models.image_processors import Lfm2VlPixels

PUBLISHED = Lfm2VL(
    patch=16,
    merge=2,
    table=16,
    tile=512,
    min_tiles=2,
    max_tiles=10,
    min_tokens=64,
    max_tokens=256,
    tolerance=2.0,
    thumbnail=True,
    short=(0, 1),
    width=2048,
    kernel=3,
)
SIZES = [(640, 480), (1023, 771), (2000, 1500), (4000, 500), (700, 2900), (40, 800), (8, 8), (724, 725)]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_its_settings_are_transformers_own() -> None:
    theirs, ours = Lfm2VlPixels({}).defaults, dict(Lfm2VL.processor_defaults or {})
    assert ours.pop("image_mean") == list(theirs["image_mean"])
    assert ours.pop("image_std") == list(theirs["image_std"])
    assert ours == {name: theirs[name] for name in ours}
    # It resizes whatever it is told, to sizes of its own, and tells on demand what it did.
    assert theirs.keys() - (Lfm2VL.processor_defaults or {}).keys() == {"do_resize", "size", "return_row_col_info"}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_are_cut_and_written_as_by_transformers(size: tuple[int, int]) -> None:
    grid = PUBLISHED.grid(size)
    theirs, names = Lfm2VlPixels({"resample": 3}), ("downsample_factor", "encoder_patch_size")
    width, height = theirs._processor.smart_resize(
        *grid, min_image_tokens=64, max_image_tokens=256, **{name: theirs.defaults[name] for name in names}
    )
    assert PUBLISHED.whole(grid) == (height, width)
    rows, cols = PUBLISHED.tiles(grid)
    said: Any = SimpleNamespace(
        image_token=IMAGE, image_start_token=START, image_end_token=END, image_thumbnail_token=THUMBNAIL
    )
    tokens = Lfm2VlProcessor._compute_tokens_for_image(said, [height, width], 16, 2)
    each = Lfm2VlProcessor._compute_tokens_per_tile(said, 512, 16, 2)
    assert PUBLISHED.expand(grid, 0) == Lfm2VlProcessor._build_image_tokens(said, rows, cols, each, tokens, True, True)
    assert PUBLISHED.expand(grid, 0).count(IMAGE) == PUBLISHED.tokens(grid)
    if np.prod(size) < 2e6:  # the others are cut alike, and take seconds
        found, expected = PUBLISHED.preprocess(noise(size)), theirs(images=[noise(size)])["pixel_values"]
        np.testing.assert_array_equal(found.values, expected)
        assert len(found.values) == PUBLISHED.patches(grid)


@pytest.mark.parametrize("size", [(333, 217), (90, 300), (1200, 900)])
def test_the_filter_is_torchvisions_to_the_next_byte(size: tuple[int, int]) -> None:
    """torchvision has torch resize the bytes of a tensor, with this call; Pillow's arithmetic rounds elsewhere."""
    picture, grid = noise(size), PUBLISHED.grid(size)
    down, across = PUBLISHED.whole(grid)
    bytes_ = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    theirs = functional.interpolate(bytes_, (down, across), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    ours = np.asarray(PUBLISHED.resize(picture, (across, down))).astype(int)
    off = np.abs(ours - theirs.numpy())
    assert off.max() <= 1
    assert (off > 0).mean() < 0.1


def test_tiles_that_nobody_has_memory_for_are_refused() -> None:
    fields = {name: getattr(PUBLISHED, name) for name in PUBLISHED.__struct_fields__} | {"kind": "lfm2-vl"}
    for changed in ({"max_tiles": 65}, {"tile": 500}, {"tile": 8192}, {"max_tokens": 10**6}):
        with pytest.raises(ValueError, match="supported: tiles of whole"):
            family_from(fields | changed)
