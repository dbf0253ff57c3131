"""The tower on torch, from any cut to any other, against transformers run whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cutline.cloud.model.loader import load_model
from cutline.cloud.model.vision import Tower, Unwanted, whole
from cutline.demo.bundles import TARGET
from cutline.models.bundle import Bundle
from cutline.testing.models.comparison import Prompt, Whole, seeded_prompts

TOLERANCE = 1e-5  # of the largest value


@pytest.fixture(scope="module", params=["smolvlm", "qwen2.5-vl"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    if request.param == "smolvlm":
        return Bundle.open(TARGET)
    qwen: Bundle = request.getfixturevalue("qwen")
    return qwen


@pytest.fixture(scope="module")
def prompt(bundle: Bundle) -> Prompt:
    """With two images of different sizes."""
    return seeded_prompts(bundle.manifest)[1]


@pytest.fixture(scope="module")
def boundaries(bundle: Bundle, prompt: Prompt) -> dict[str, torch.Tensor]:
    """What crosses each cut up to the decoder."""
    states, _ = Whole(bundle).run(prompt)
    pixels = np.concatenate([image.values for image in prompt.images])
    found = {cut: torch.from_numpy(states[cut]) for cut in bundle.manifest.line.image_cuts[1:]}
    return {"image": torch.from_numpy(pixels), **found}


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Any:
    return load_model(bundle).model


def test_every_span_of_the_tower_is_transformers_own(
    bundle: Bundle, model: Any, prompt: Prompt, boundaries: dict[str, torch.Tensor]
) -> None:
    line, grids = bundle.manifest.line, [image.grid for image in prompt.images]
    assert len(set(grids)) == len(grids) or (0, 0) in grids
    for last, end in enumerate(line.image_cuts):
        tower = Tower(model, bundle.manifest.family, line, end=end)
        for start in line.image_cuts[: last + 1]:
            found, expected = whole(tower.steps(boundaries[start], start, grids)), boundaries[end]
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), f"{start} to {end}"


def test_images_do_not_see_each_other(
    bundle: Bundle, model: Any, prompt: Prompt, boundaries: dict[str, torch.Tensor]
) -> None:
    tower = Tower(model, bundle.manifest.family, bundle.manifest.line, end="head")
    alone = [whole(tower.steps(torch.from_numpy(one.values), "image", [one.grid])) for one in prompt.images]
    torch.testing.assert_close(torch.cat(alone), boundaries["decoder.0"], rtol=0, atol=1e-4)


def test_a_prompt_without_images_needs_no_tower(bundle: Bundle, model: Any) -> None:
    tower = Tower(model, bundle.manifest.family, bundle.manifest.line, end="end")
    assert len(whole(tower.steps(torch.empty(0, bundle.manifest.decoder.width), "decoder.0", ()))) == 0


def test_rows_do_not_depend_on_what_else_is_encoded(
    bundle: Bundle, model: Any, prompt: Prompt, boundaries: dict[str, torch.Tensor]
) -> None:
    """To the last bit: else what is kept of an image would depend on who came with it. A step is a layer of a slice."""
    line = bundle.manifest.line
    tower = Tower(model, bundle.manifest.family, line, end="end")
    grids = [image.grid for image in prompt.images]
    together = whole(tower.steps(boundaries["image"], "image", grids))
    alone = [whole(tower.steps(torch.from_numpy(one.values), "image", [one.grid])) for one in prompt.images]
    assert torch.equal(together, torch.cat(alone))
    family = bundle.manifest.family
    slices = len(family.slices(boundaries["image"], grids))
    assert slices == (len(boundaries["image"]) if family.takes((0, 0)) else len(grids))
    assert sum(1 for _ in tower.steps(boundaries["image"], "image", grids)) == slices * line.place("decoder.0")


def test_nobody_waits_for_more_than_a_part_of_a_layer(
    bundle: Bundle, model: Any, prompt: Prompt, boundaries: dict[str, torch.Tensor]
) -> None:
    """Whoever leaves while a layer runs has it given up there, and the next one has what it would have had."""
    tower = Tower(model, bundle.manifest.family, bundle.manifest.line, end="end")
    grids, looks = [image.grid for image in prompt.images], 0

    def aborted() -> bool:
        nonlocal looks
        looks += 1
        return looks == last

    last = 0
    expected = whole(tower.steps(boundaries["image"], "image", grids, aborted=aborted))
    layers = sum(1 for _ in tower.steps(boundaries["image"], "image", grids))
    assert looks >= 4 * layers
    for last in (1, looks // 2, looks):
        looks = 0
        with pytest.raises(Unwanted):
            whole(tower.steps(boundaries["image"], "image", grids, aborted=aborted))
        assert looks == last
    assert torch.equal(whole(tower.steps(boundaries["image"], "image", grids)), expected)
