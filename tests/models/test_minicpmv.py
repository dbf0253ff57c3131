"""MiniCPM-V's pictures and prompts, against transformers' own processor at published sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

from cutline.core.conversation import ImagePart, Message, TextPart, question
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.export.source import read_source
from cutline.models.families import family_from
from cutline.models.families.minicpm import minicpmv
from cutline.models.images import size_fault
from cutline.models.prompt import PromptBuilder
from cutline.models.shapes import known_shapes
from cutline.testing.models.small_models import SMALL

THEIRS: Any = MiniCPMV4_6ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
PUBLISHED: Any = known_shapes()["minicpm-v-4.6"].family
SIZES = [(8, 8), (40, 800), (448, 448), (449, 448), (640, 480), (333, 1000), (1023, 771), (1344, 1344)]
SAID: Any = SimpleNamespace(
    image_token=minicpmv.IMAGE,
    image_start_token=minicpmv.START,
    image_end_token=minicpmv.END,
    slice_start_token=minicpmv.SLICE,
    slice_end_token=minicpmv.SLICE_END,
    image_id_start_token=minicpmv.NUMBER,
    image_id_end_token=minicpmv.NUMBER_END,
    slice_mode=True,
)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8))


def written(made: Any, count: int) -> list[str]:
    """What transformers' processor writes for each of so many pictures of one prompt."""
    texts = [MiniCPMV4_6Processor.replace_image_token(SAID, made, at, image_token_divisor=16) for at in range(count)]
    numbered: list[str] = MiniCPMV4_6Processor._prepend_local_ids(
        SAID, [SAID.image_token * count], texts, minicpmv.IMAGE
    )
    return numbered


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_are_sliced_and_written_as_by_transformers(size: tuple[int, int]) -> None:
    image = noise(size)
    pixels, made = PUBLISHED.preprocess(image), THEIRS(images=[image], return_tensors="np")
    given = PUBLISHED.as_given([pixels])
    np.testing.assert_array_equal(given["pixel_values"], made["pixel_values"])
    np.testing.assert_array_equal(given["target_sizes"], made["target_sizes"])
    assert PUBLISHED.expand(pixels.grid, 0) == written(made, 1)[0]
    assert PUBLISHED.expand(pixels.grid, 0).count(minicpmv.IMAGE) == PUBLISHED.tokens(pixels.grid)


@given(st.tuples(st.integers(8, 6000), st.integers(8, 6000)).filter(lambda size: size_fault(size) is None))
@settings(max_examples=150, deadline=None)
def test_any_picture_is_cut_as_by_transformers(size: tuple[int, int]) -> None:
    grid = PUBLISHED.grid(size)
    scaled = {"scale_resolution": 448, "patch_size": 14, "downsample_mode": "16x", "allow_upscale": True}
    field = THEIRS.get_sliced_grid(grid, 9, 448)
    expected = [THEIRS.find_best_resize(grid, **scaled)]
    if field is not None:
        down, across = THEIRS.get_refine_size(grid, field, **scaled)
        expected += [(down // field[0], across // field[1])] * (field[0] * field[1])
    assert PUBLISHED.field(grid) == (None if field is None else tuple(field))
    assert PUBLISHED.sizes(grid) == expected


def test_pictures_of_a_prompt_are_numbered_over_all_turns(targets: Callable[[str], Bundle]) -> None:
    """A picture that came with an earlier turn, two of this one: the tokens are those of transformers' text."""
    bundle = targets("minicpm-v")
    family: Any = bundle.manifest.family
    images = [noise(size) for size in ((64, 64), (200, 100), (90, 260))]
    processor: Any = MiniCPMV4_6ImageProcessorPil
    made = processor(**SMALL["minicpm-v"].processor)(images=images, return_tensors="np")
    texts = written(made, 3)
    builder = PromptBuilder.open(bundle)
    messages = [
        question("one"),
        Message("assistant", (TextPart("two"),)),
        Message("user", (ImagePart(), TextPart("three"), ImagePart(), TextPart("four"))),
    ]
    prompt = builder.build(messages, [family.grid(image.size) for image in images])
    turns = [("user", f"{texts[0]}\none"), ("assistant", "two"), ("user", f"{texts[1]}\nthree{texts[2]}\nfour")]
    whole = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert prompt.ids == builder.vocabulary.encode(f"{whole}<|im_start|>assistant\n")
    assert len(prompt.image_positions) == sum(family.tokens(family.grid(image.size)) for image in images)


@pytest.mark.parametrize(
    ("file", "place", "name", "value"),
    [
        ("config.json", (), "insert_layer_id", 4),
        ("config.json", (), "insert_layer_id", -1),
        ("config.json", (), "downsample_mode", "4x"),
        ("config.json", (), "merger_times", 2),
        ("config.json", (), "merge_kernel_size", [4, 4]),
        ("config.json", (), "drop_vision_last_layer", True),
        ("config.json", ("vision_config",), "window_kernel_size", [4, 4]),
        ("preprocessor_config.json", (), "downsample_mode", "4x"),
        ("preprocessor_config.json", (), "patch_size", 14),
        ("preprocessor_config.json", (), "max_slice_nums", 65),
        ("tokenizer_config.json", (), "slice_start_token", "<piece>"),
    ],
)
def test_what_does_not_run_is_named(file: str, place: tuple[str, ...], name: str, value: Any, tmp_path: Path) -> None:
    SMALL["minicpm-v"].write(tmp_path)
    said = json.loads((tmp_path / file).read_text())
    part = said
    for key in place:
        part = part[key]
    part[name] = value
    (tmp_path / file).write_text(json.dumps(said))
    with pytest.raises(InputError, match="slices of" if name == "max_slice_nums" else name) as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["minicpmv", "minicpmo", "minicpmv4_7"])
def test_older_and_later_ones_are_refused_with_why(kind: str, tmp_path: Path) -> None:
    said = {"model_type": kind, "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=f"{kind}, which does not run: .*; minicpmv4_6 runs") as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


def test_slices_that_nobody_has_memory_for_are_refused() -> None:
    fields = {name: getattr(PUBLISHED, name) for name in PUBLISHED.__struct_fields__} | {"kind": "minicpm-v"}
    for changed in ({"most": 65}, {"side": 8192}, {"side": 55}):
        with pytest.raises(ValueError, match="slices of"):
            family_from(fields | changed)
