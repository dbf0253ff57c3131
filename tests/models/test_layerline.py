from __future__ import annotations

import pytest

from cutline.models.layerline import END, LayerLine

LINE = LayerLine(vision=2, decoder=3)


def test_layers_stand_in_order_and_places_count_them() -> None:
    names = ["image", "vision.0", "vision.1", "connector", "decoder.0", "decoder.1", "decoder.2", "head"]
    assert list(LINE.layers) == names
    assert [LINE.place(name) for name in (*names, END)] == list(range(9))


def test_every_cut_is_before_or_inside_the_decoder() -> None:
    assert LINE.image_cuts == ("image", "vision.0", "vision.1", "connector", "decoder.0")
    assert LINE.deep_cuts == ("decoder.1", "decoder.2", "head")
    assert LINE.image_cuts + LINE.deep_cuts == LINE.layers
    assert LayerLine(vision=1, decoder=1).deep_cuts == ("head",)


@pytest.mark.parametrize(
    ("cut", "first"),
    [("image", 0), ("vision.1", 0), ("connector", 0), ("decoder.0", 0), ("decoder.2", 2), ("head", 3), (END, 3)],
)
def test_the_decoder_layers_that_are_left(cut: str, first: int) -> None:
    assert LINE.decoder_layer(cut) == first


@pytest.mark.parametrize("name", ["", "decoder.3", "vision.2", "decoder", "Head"])
def test_a_name_that_no_layer_has(name: str) -> None:
    with pytest.raises(ValueError, match=r"not in tuple"):
        LINE.place(name)
