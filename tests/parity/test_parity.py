"""Split equals unsplit at every cut: boundaries, logits and greedy answers, alone and four in a pass.

A short form of `python -m cutline.bench.parity`, which answers at length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutline.cloud.model.model_runner import Capacity, Target
from cutline.demo.bundles import TARGET
from cutline.edge.inference.target_prefix import device_cuts
from cutline.models.bundle import Bundle
from cutline.models.families import COUNTED, Positions
from cutline.models.families.qwen.qwen25vl import Qwen25VL
from cutline.testing.models.comparison import (
    PROMPTS,
    TOLERANCE,
    Compared,
    Device,
    ImageRows,
    Whole,
    compare,
    compare_cuts,
    expect,
    seeded_prompts,
    smolvlm_256m,
)
from cutline.testing.models.small_models import SMALL


def check(found: Iterator[Compared], cuts: tuple[str, ...]) -> None:
    batches = [1, len(PROMPTS)]
    compared = list(found)
    assert [(one.cut, one.batch) for one in compared] == [(cut, batch) for cut in cuts for batch in batches]
    assert [one for one in compared if not one.holds] == []
    # The device has computed something, and the target's share of it came through.
    assert {one.cut for one in compared if one.boundary > 0} == set(cuts) - {"image"}


def test_every_cut_of_the_demo() -> None:
    bundle = Bundle.open(TARGET)
    cuts = bundle.manifest.line.layers
    check(compare_cuts(bundle, cuts, steps=16), cuts)


SECOND = ("internvl-qwen3", "gemma4-large")  # of a family; their graphs take torch a minute


@pytest.mark.sampled(6, 2)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.proof] if name in SECOND else []) for name in SMALL]
)
def test_some_cuts_of_each_family(name: str, targets: Callable[[str], Bundle], rounds: int) -> None:
    """One in so many."""
    bundle = targets(name)
    layers = ("image", *device_cuts(bundle.manifest))
    taps = [layers.index(f"vision.{tap}") + 1 for tap in bundle.manifest.family.taps]
    # Those about which rows get other streams are always among them.
    first = layers.index("decoder.0")
    streams = {*taps, *range(first, min(first + len(taps) + 1, len(layers)))}
    cuts = tuple(layers[index] for index in sorted({*range(0, len(layers), rounds), *streams}))
    check(compare_cuts(bundle, cuts, steps=8), cuts)


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_every_second_cut_of_a_shallow_smolvlm_256m(tmp_path: Path) -> None:
    """Its widths, heads, tiles and vocabulary; the bench takes all of its layers too."""
    bundle = smolvlm_256m(tmp_path, depth=(2, 4))
    cuts = bundle.manifest.line.layers[::2]
    check(compare_cuts(bundle, cuts, steps=2), cuts)


def test_prompts_are_of_all_kinds(qwen: Bundle) -> None:
    for bundle in (qwen, Bundle.open(TARGET)):
        prompts = seeded_prompts(bundle.manifest)
        assert sorted(len(prompt.images) for prompt in prompts) == [0, 0, 1, 2]
        assert len({len(prompt.ids) for prompt in prompts}) == len(prompts)  # none fits over another
        answers = [one.answer for one in expect(Whole(bundle), prompts, 16)]  # they begin alike
        assert len({tuple(answer) for answer in answers}) == len(answers)


def test_what_is_not_the_same_is_found_out(qwen: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = seeded_prompts(qwen.manifest)[:1]
    expected = expect(Whole(qwen), prompts, 4)
    target = Target(qwen, Capacity(slots=1, context=200))
    device = Device(qwen, "vision.2", ImageRows(qwen))
    assert compare(device, target, prompts, expected).holds

    def counted(_: Any, image_tokens: np.ndarray[Any, Any], *given: object) -> Positions:
        return Positions(COUNTED.at(0, len(image_tokens)).repeat(3, axis=0))

    with monkeypatch.context() as patch:  # an image whose tokens do not know their places
        patch.setattr(Qwen25VL, "positions", counted)
        assert compare(device, target, prompts, expected).logits > TOLERANCE

    def unbounded(self: Qwen25VL, module: Any, index: int, *given: Any, **more: Any) -> Any:
        return step(self, module, self.full[0], *given, **more)

    step = Qwen25VL.step
    with monkeypatch.context() as patch:  # a tower without windows
        patch.setattr(Qwen25VL, "step", unbounded)
        assert compare(device, Target(qwen, Capacity(slots=1, context=200)), prompts, expected).logits > TOLERANCE
