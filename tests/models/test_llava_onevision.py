"""LLaVA-OneVision's fields: which rows of a picture's tiles become tokens, against transformers' own packing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutline.models.export.source import SourceModel, read_source
from cutline.models.families.llava_onevision import LlavaOnevision
from cutline.testing.models.small_models import SMALL

PINS = [[64 * down, 64 * across] for down in range(1, 7) for across in range(1, 7)]
SIDES = st.tuples(st.integers(8, 600), st.integers(8, 600)).filter(lambda size: max(size) <= 20 * min(size))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder: Path = tmp_path_factory.mktemp("llava")
    SMALL["llava-onevision"].write(folder)
    return read_source(folder)


@settings(max_examples=120, deadline=None)
@given(size=SIDES, most=st.sampled_from([1, 4, 9]))
@example(size=(600, 600), most=1)
@example(size=(600, 31), most=9)
def test_tokens_are_those_that_transformers_packs(source: SourceModel, size: tuple[int, int], most: int) -> None:
    """Margins left out, large fields shrunk, and a row at the end of each line."""
    assert isinstance(source.family, LlavaOnevision)
    family = msgspec.structs.replace(source.family, fields=tuple(map(tuple, PINS)), most=most)
    if min(family.shrunk(size)) == 0:  # of which transformers makes nothing either
        assert not family.takes(size)
        return
    whole = source.model.model
    whole.config.image_grid_pinpoints = PINS
    tiles, width = family.tiles(size), whole.image_newline.shape[0]
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(tiles, family.tile_tokens, width))).float()
    with torch.inference_mode():
        (expected,), _ = whole.pack_image_features(
            [rows], [size], image_newline=whole.image_newline, vision_aspect_ratio=f"anyres_max_{most}"
        )
        beside = {name: torch.from_numpy(array) for name, array in family.beside(size).items()}
        made = torch.cat([rows.flatten(0, 1), whole.image_newline[None]])
        found = (made[beside["near"]] * beside["weights"][..., None]).sum(1)
    assert family.tokens(size) == len(expected) == len(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
