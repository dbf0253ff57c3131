"""Qwen2.5-VL's arithmetic in NumPy: parity with transformers' image processor, tower and positions."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLModel,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from cutline.errors import InputError
from cutline.models.families import Family, Grid, Positions
from cutline.models.families.qwen.qwen25vl import Qwen25VL
from cutline.models.families.qwen.qwenvl import IMAGE
from cutline.models.images import MAX_ASPECT, MAX_PIXELS, decode_image

CONFIG: Any = Qwen2_5_VLConfig(
    image_token_id=7,
    video_token_id=8,
    vision_start_token_id=5,
    vision_end_token_id=6,
    vision_config={
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 64,
    },
    text_config={
        "vocab_size": 90,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)


def family_of(config: Any = CONFIG, **processor: Any) -> Qwen25VL:
    """With an image processor that transformers made of these settings."""
    return Qwen25VL.of(config, Qwen2VLImageProcessorPil(**processor).to_dict())


SMALL = family_of(min_pixels=56 * 56, max_pixels=40 * 28 * 28)
PUBLISHED = msgspec.structs.replace(SMALL, max_pixels=12845056)
NARROW = msgspec.structs.replace(SMALL, min_pixels=5000, max_pixels=5000)  # no size is within both limits
TINY = msgspec.structs.replace(SMALL, min_pixels=1, max_pixels=1)
FAMILIES = (SMALL, PUBLISHED, NARROW, TINY)

sides = st.integers(8, 400)
shapes = st.tuples(sides, sides).filter(lambda shape: max(shape) <= MAX_ASPECT * min(shape))
grids = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda grid: (2 * grid[0], 2 * grid[1]))


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def thw(*grids: Grid) -> Any:
    return torch.tensor([(1, *grid) for grid in grids])


def prompt(parts: list[tuple[int, Grid | None]]) -> tuple[list[int], list[Grid]]:
    """Ids of some words and maybe an image, again and again."""
    ids: list[int] = []
    for words, grid in parts:
        ids += [20] * words + ([5, *[7] * SMALL.tokens(grid), 6] if grid else [])
    return ids, [grid for _, grid in parts if grid]


def positions(ids: list[int], sizes: list[Grid]) -> Positions:
    return SMALL.positions(np.array(ids) == 7, sizes)


@pytest.mark.parametrize("family", FAMILIES[:3])
@given(shape=shapes, seed=st.integers(0, 9))
@example(shape=(8, 8), seed=0)
@example(shape=(8, 160), seed=0)
@settings(max_examples=25, deadline=None)
def test_pixels_are_bit_for_bit_those_of_transformers(family: Qwen25VL, shape: tuple[int, int], seed: int) -> None:
    image = noise(shape, seed)
    processor = Qwen2VLImageProcessorPil(min_pixels=family.min_pixels, max_pixels=family.max_pixels)
    expected = processor.preprocess(image)
    pixels = family.preprocess(image)
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, expected["pixel_values"])
    assert [[1, *pixels.grid]] == np.asarray(expected["image_grid_thw"]).tolist()
    assert family.grid(shape) == pixels.grid
    assert len(pixels.values) == family.patches(pixels.grid)


@pytest.mark.parametrize("family", FAMILIES)
@given(shape=st.tuples(st.integers(8, 4096), st.integers(8, 4096)).filter(lambda size: max(size) <= 20 * min(size)))
def test_any_image_becomes_a_grid_that_is_taken(family: Qwen25VL, shape: tuple[int, int]) -> None:
    grid = family.grid(shape)
    assert family.takes(grid)
    assert family.fitted(shape)[::-1] == smart_resize(
        shape[1], shape[0], 28, min_pixels=family.min_pixels, max_pixels=family.max_pixels
    )


@pytest.mark.parametrize("family", FAMILIES[:2])
@given(
    shape=st.tuples(st.integers(8, 2000), st.integers(8, 2000)).filter(lambda size: max(size) <= 20 * min(size)),
    tokens=st.integers(1, 400),
)
@example(shape=(743, 39), tokens=27)
@example(shape=(79, 1312), tokens=139)
@example(shape=(1899, 96), tokens=197)
def test_an_image_within_so_many_tokens_is_as_large_as_it_may_be(
    family: Qwen25VL, shape: tuple[int, int], tokens: int
) -> None:
    found = family.within(shape, tokens)
    if found is None:
        # A thin one has many tokens at the least, and there is a least that the family makes of any.
        assert tokens < 4 * max(MAX_ASPECT, family.min_pixels / 28**2)
        return
    assert family.tokens(family.grid(found)) <= tokens
    if found != shape:
        assert family.fitted(found) == found, "a worker, which knows nothing of it, sees the same"
        across, down = found
        assert (across // 28 + 1) * (down // 28 + 1) > tokens * 0.99
        assert all(side <= whole for side, whole in zip(found, family.fitted(shape), strict=True))
        if min(found) >= 4 * 28:  # of few tokens along a side one more or less is much
            assert 2 / 3 < (across / down) / (shape[0] / shape[1]) < 3 / 2


@pytest.mark.parametrize("grid", [(0, 0), (0, 2), (-2, -2), (1, 2), (2, 3), (200, 2), (2, 10**9), (20, 40)])
def test_a_grid_that_no_image_becomes_is_not_taken(grid: Grid) -> None:
    assert not SMALL.takes(grid)


@pytest.mark.threat("aspect")
def test_the_work_an_image_can_cause_is_bounded() -> None:
    most = PUBLISHED.largest // PUBLISHED.patch**2
    assert most == 65536
    with pytest.raises(ValueError, match="min_pixels, max_pixels"):  # whatever a folder says
        family_of(max_pixels=MAX_PIXELS + 1)


@pytest.mark.parametrize("family", FAMILIES)
@given(shape=shapes, flat=st.booleans())
@settings(max_examples=20, deadline=None)
def test_an_upload_never_grows_and_gives_the_same_pixels(family: Family, shape: tuple[int, int], flat: bool) -> None:
    out = BytesIO()
    (Image.new("RGB", shape, "teal") if flat else noise(shape)).save(out, "PNG")
    image = decode_image(out.getvalue())
    upload = family.shrink(out.getvalue(), image)
    assert len(upload) <= len(out.getvalue())
    there, here = family.preprocess(decode_image(upload)), family.preprocess(image)
    assert there.grid == here.grid
    np.testing.assert_array_equal(there.values, here.values)


@given(grid=grids)
def test_windows_are_those_of_transformers(grid: Grid) -> None:
    index, ends = get_vision_window_index(thw(grid), spatial_merge_size=2, window_size=112, patch_size=14)
    order, lengths = SMALL.windows(grid)
    assert order.tolist() == index.tolist()
    assert np.cumsum([0, *lengths]).tolist() == ends.tolist()
    beside = SMALL.beside(grid)
    assert beside["order"][beside["back"]].tolist() == list(range(len(order)))
    # Every row has a slot of its own, in the window that transformers puts it into.
    flat = beside["slots"].reshape(-1)
    assert flat[beside["places"]].tolist() == list(range(grid[0] * grid[1]))
    assert (flat >= 0).sum() == grid[0] * grid[1]
    rows = [window[window >= 0] for window in beside["slots"]]
    assert np.cumsum([0, *map(len, rows)]).tolist() == ends.tolist()
    assert np.concatenate(rows).tolist() == list(range(grid[0] * grid[1]))


@given(grid=grids)
def test_the_tower_turns_rows_as_transformers_does(grid: Grid) -> None:
    expected = get_vision_position_ids(thw(grid), 2)
    np.testing.assert_array_equal(SMALL.places(grid), expected)
    cos, sin = Qwen2_5_VLVisionRotaryEmbedding(CONFIG.vision_config)(torch.zeros(1), expected)
    index, _ = get_vision_window_index(thw(grid), spatial_merge_size=2, window_size=112, patch_size=14)
    cos, sin = (of.unflatten(0, (-1, 4))[index].flatten(0, 1) for of in (cos, sin))
    beside = SMALL.beside(grid)
    negated = np.repeat([-1, 1], SMALL.tower_head // 2)
    np.testing.assert_allclose(beside["cos"], cos, atol=1e-6)
    np.testing.assert_allclose(beside["sin"] * negated, sin, atol=1e-6)


@given(parts=st.lists(st.tuples(st.integers(0, 9), st.none() | grids), min_size=1, max_size=4), more=st.integers(1, 9))
@example(parts=[(0, (2, 2))], more=3)
@example(parts=[(3, (2, 20)), (0, (20, 2)), (4, None)], more=3)
@settings(deadline=None)
def test_positions_are_those_of_transformers(parts: list[tuple[int, Grid | None]], more: int) -> None:
    ids, sizes = prompt([*parts, (1, None)])
    tensor: Any = torch.tensor([ids])
    ours = type("Ours", (), {"config": CONFIG, "get_vision_position_ids": Qwen2_5_VLModel.get_vision_position_ids})()
    expected, delta = Qwen2_5_VLModel.get_rope_index(ours, tensor, (tensor == 7).int(), thw(*sizes) if sizes else None)
    found = positions(ids, sizes)
    np.testing.assert_array_equal(found.at(0, len(ids)), expected[:, 0])
    after = torch.arange(len(ids), len(ids) + more) + delta
    np.testing.assert_array_equal(found.at(len(ids), len(ids) + more), after.expand(3, -1))


@given(data=st.data())
def test_positions_of_a_part_are_a_part_of_the_positions(data: st.DataObject) -> None:
    ids, sizes = prompt([(2, (4, 6)), (3, None)])
    found, end = positions(ids, sizes), len(ids) + 5
    first = data.draw(st.integers(0, end))
    last = data.draw(st.integers(first, end))
    np.testing.assert_array_equal(found.at(first, last), found.at(0, end)[:, first:last])


@pytest.mark.parametrize(
    ("ids", "sizes", "said"),
    [
        ([1, 7, 7, 2], [(2, 2)], "holds 2 image tokens, its images have 1"),
        ([1, 2], [(2, 2)], "holds 0 image tokens, its images have 1"),
        ([1, 7, 2], [], "holds 1 image tokens, its images have 0"),
        ([1, 7, 2, 7], [(2, 4)], "do not stand together"),
        ([7, 7, 2, 7, 7, 7], [(4, 4), (2, 2)], "do not stand together"),
    ],
)
def test_a_prompt_that_does_not_fit_its_images_is_refused(ids: list[int], sizes: list[Grid], said: str) -> None:
    with pytest.raises(InputError, match=said):
        positions(ids, sizes)


@given(parts=st.lists(st.tuples(st.integers(0, 9), grids), max_size=2))
def test_the_decoder_is_turned_as_transformers_does(parts: list[tuple[int, Grid | None]]) -> None:
    found = positions(*prompt([*parts, (2, None)])).at(0, 12)
    cos, sin = Qwen2_5_VLRotaryEmbedding(CONFIG.text_config)(torch.zeros(1), torch.from_numpy(SMALL.as_ids(found)))
    rotations = SMALL.rotations(found)
    for ours, theirs in ((rotations["cos"], cos), (rotations["sin"], sin)):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(np.tile(ours, 2), theirs[0], atol=1e-5)


@given(grid=grids)
def test_an_image_is_written_as_transformers_counts_it(grid: Grid) -> None:
    """A token for each four patches, as `Qwen2_5_VLProcessor.replace_image_token` has it."""
    assert SMALL.expand(grid, 0) == IMAGE * int(thw(grid)[0].prod() // 4)


@pytest.mark.parametrize(
    "processor",
    [
        {"min_pixels": 4000, "max_pixels": 90000},
        {"size": {"shortest_edge": 4000, "longest_edge": 90000}},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 4000, "max_pixels": 90000},
    ],
)
def test_limits_are_read_as_transformers_reads_them(processor: dict[str, Any]) -> None:
    family, theirs = family_of(**processor), Qwen2VLImageProcessorPil(**processor)
    assert (family.min_pixels, family.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])


@pytest.mark.parametrize(
    ("text", "vision", "processor", "said"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, {}, {}, "layer_types 'sliding_attention'"),
        ({"rope_parameters": {"rope_type": "yarn", "mrope_section": [2, 3, 3]}}, {}, {}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {}, {}, "mrope_section None"),
        ({}, {"window_size": 100}, {}, "window_size 100"),
        ({}, {"num_heads": 7}, {}, "num_heads 7"),
        ({}, {"patch_size": [14, 14]}, {}, "patch_size \\[14, 14\\]"),
        ({}, {}, {"merge_size": 4}, "merge_size 4 in its image processor, and 2"),
        ({}, {}, {"size": {"height": 28, "width": 28}}, "size {.*28.*}"),
        ({}, {}, {"image_mean": [0.5]}, "image_mean .*three"),
    ],
)
def test_what_does_not_run_is_named(
    text: dict[str, Any], vision: dict[str, Any], processor: dict[str, Any], said: str
) -> None:
    config = Qwen2_5_VLConfig.from_dict(CONFIG.to_dict())
    for part, changes in ((config.text_config, text), (config.vision_config, vision)):
        for name, value in changes.items():
            setattr(part, name, value)
    with pytest.raises(ValueError, match=said):
        family_of(config, **processor)
