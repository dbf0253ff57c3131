"""Every family's small model: its images as transformers' own processor makes them, and what its folder may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from cutline.errors import InputError
from cutline.models.export.source import SourceModel, read_source
from cutline.models.families import family_from
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.images import decode_image, lossless
from cutline.testing.models.image_processors import image_processor
from cutline.testing.models.small_models import SMALL

# Tiny, odd, thin, of one tile and of many, in the limits of sides and proportions.
SIZES = [
    (8, 8),
    (9, 170),
    (800, 40),
    (64, 64),
    (63, 65),
    (128, 64),
    (333, 217),
    (217, 333),
    (200, 200),
    (640, 480),
    (1023, 771),
    (64, 1280),
    (2000, 1500),
]


@pytest.fixture(scope="module", params=SMALL)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp(request.param)
    SMALL[request.param].write(folder)
    return read_source(folder)


@pytest.fixture(scope="module")
def theirs(source: SourceModel) -> Any:
    return image_processor(source.path, source.family)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_bit_for_bit_those_of_transformers(source: SourceModel, theirs: Any, size: tuple[int, int]) -> None:
    family, image = source.family, noise(size)
    pixels = family.preprocess(image)
    more = {"crop_to_patches": True} if hasattr(theirs, "crop_to_patches") else {}  # as InternVL's processor says
    expected = np.asarray(theirs(images=[image], return_tensors="np", **more)["pixel_values"])
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, expected.astype(np.float32).reshape(pixels.values.shape))
    assert pixels.grid == family.grid(size)
    assert family.takes(pixels.grid)
    assert family.expand(pixels.grid, 0).count(family.image_token or family.image_marker) == family.tokens(pixels.grid)


@pytest.mark.parametrize("size", SIZES)
def test_an_upload_has_the_same_pixels(source: SourceModel, size: tuple[int, int]) -> None:
    image = noise(size)
    file = source.family.shrink(lossless(image), image)
    here, there = source.family.preprocess(image), source.family.preprocess(decode_image(file))
    assert here.grid == there.grid
    np.testing.assert_array_equal(here.values, there.values)


def test_a_device_and_a_worker_agree_on_what_a_family_is(source: SourceModel) -> None:
    family, line = source.family, source.line
    assert family.is_alike(family)
    assert family.streams(line, "vision.0") == family.streams(line, "head") == 1
    assert family.streams(line, "decoder.0") == (1 if family.has_sides else 1 + len(family.taps))


def test_a_pair_shares_what_is_seen_and_no_more(source: SourceModel) -> None:
    family = source.family
    for name, value in msgspec.structs.asdict(family).items():
        if isinstance(value, bool | str | msgspec.Struct | msgspec.UnsetType) or (
            isinstance(value, tuple) and not value
        ):
            continue
        other = (*value[:-1], value[-1] * 2) if isinstance(value, tuple) else value * 2
        try:
            changed = msgspec.structs.replace(family, **{name: other})
        except ValueError:  # sizes that do not go together
            continue
        assert family.is_alike(changed) == (name in family.apart), name
    assert not family.is_alike(SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=32, split=False))


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "image_token_id", 10**6),
        ("config.json", "quantization_config", {"quant_method": "awq"}),
        ("preprocessor_config.json", "do_normalize", False),
        ("preprocessor_config.json", "resample", 0),
        ("preprocessor_config.json", "image_processor_type", "ViTImageProcessor"),
    ],
)
def test_what_does_not_run_is_named(source: SourceModel, tmp_path: Path, file: str, name: str, value: Any) -> None:
    for other in source.path.iterdir():
        (tmp_path / other.name).symlink_to(other)
    said = json.loads((tmp_path / file).read_text())
    (tmp_path / file).unlink()
    said.pop("image_token_index", None)  # as some families have the same
    value = not source.family.normalises if name == "do_normalize" else value
    (tmp_path / file).write_text(json.dumps(said | {name: value}))
    with pytest.raises(InputError, match=name) as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


def test_image_tokens_that_no_picture_has_are_refused(tmp_path: Path) -> None:
    """A worker gets tokens from outside: they may not make one block of all, nor thousands of blocks."""
    SMALL["gemma3"].write(tmp_path)
    family = read_source(tmp_path).family
    for tokens, pictures in ((np.ones(64, bool), 16), (np.arange(64) % 2 == 0, 8), (np.zeros(9, bool), 1)):
        with pytest.raises(InputError, match="image tokens"):
            family.positions(tokens, [(0, 0)] * pictures)


def test_a_field_that_nobody_has_memory_for_is_refused(tmp_path: Path) -> None:
    SMALL["llava-onevision"].write(tmp_path)
    fields = msgspec.to_builtins(read_source(tmp_path).family)
    for field in ((10**7, 10**7), (64, 65), (64 * 80, 64)):
        with pytest.raises(ValueError, match="supported: up to 64 tiles of 64"):
            family_from(fields | {"fields": [field]})
    with pytest.raises(ValueError, match="tokens a tile"):
        family_from(fields | {"patch": 32})
