"""The table of pairs: real names, and as far as their sizes are known, pairs that fit."""

from __future__ import annotations

import pytest

from cutline.errors import InputError
from cutline.models.families import FAMILIES
from cutline.models.hub.names import ModelName
from cutline.models.hub.pairs import find_pair, known_pairs
from cutline.models.shapes import known_shapes


def test_every_pair_is_two_names_on_a_hub() -> None:
    for name, pair in known_pairs().items():
        assert ModelName.read(name).name == name, "such as `cutline pull` takes"
        assert not ModelName.read(name).owned, "so that no model is called so"
        for one in (pair.drafter, pair.target):
            assert ModelName.read(one) == ModelName(one)
        assert pair.drafter != pair.target


def test_pairs_whose_sizes_are_known_fit() -> None:
    shapes = {shape.source: shape for shape in known_shapes().values()}
    both = [pair for pair in known_pairs().values() if {pair.drafter, pair.target} <= shapes.keys()]
    assert len(both) >= 3
    for pair in both:
        drafter, target = shapes[pair.drafter], shapes[pair.target]
        assert drafter.family.is_alike(target.family)
        assert drafter.decoder.context >= target.decoder.context
        small, large = (one.manifest("it", role="target", precision="fp32").parameters for one in (drafter, target))
        assert sum(small) < sum(large)


ALONE = {"minicpm-v"}  # families of which one size is published that runs here


def test_there_is_a_pair_of_every_family() -> None:
    kinds = " ".join(name for name in known_pairs()).replace("-", "").replace(".", "")
    for family in (one for one in FAMILIES if not one.has_sides):  # of which no drafters are made
        kind = family.__struct_config__.tag
        if kind in ALONE:
            continue
        assert str(kind).replace("-", "").replace(".", "") in kinds, kind


def test_a_pair_that_is_not_known_is_told_the_nearest() -> None:
    assert find_pair("qwen3-vl-8b").target == "Qwen/Qwen3-VL-8B-Instruct"
    with pytest.raises(InputError, match="did you mean qwen3-vl-8b"):
        find_pair("qwen3-vl-9b")
    with pytest.raises(InputError, match="known are smolvlm-500m, "):
        find_pair("none")
