"""The layer line: a model as one ordered line of layers, `image → vision.0..n → connector → decoder.0..m → head`."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]  # checked where a manifest is read


class LayerLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of layers in a model's vision tower and decoder."""

    vision: Count
    decoder: Count

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer's name, in order. A cut `c` gives the edge `layers[:c]` and the cloud `layers[c:]`."""
        vision = (f"vision.{index}" for index in range(self.vision))
        decoder = (f"decoder.{index}" for index in range(self.decoder))
        return ("image", *vision, "connector", *decoder, "head")

    def vision_layer(self, cut: str) -> int:
        """The first vision layer that the cloud runs at a cut in or right after the tower."""
        return self.layers.index(cut) - 1

    @property
    def image_cuts(self) -> tuple[str, ...]:
        """The cuts up to the decoder, named by the first layer that the cloud runs: `image` to `decoder.0`."""
        return self.layers[: self.layers.index("connector") + 2]
