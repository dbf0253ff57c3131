"""The layer line: a model as one sequence of layers, `image → vision.0..n → connector → decoder.0..m → head`."""

from __future__ import annotations

from typing import Annotated

import msgspec

# Bounds on the numbers in a manifest, so that none makes its reader use up all memory.
Count = Annotated[int, msgspec.Meta(ge=1, le=10**7)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=1000)]

END = "end"  # the end of a span with the head


class LayerLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Numbers of layers in a model's vision tower and decoder.

    Where later layers of the decoder read what earlier ones keep, no cut lies behind the one before layer `deepest`.
    """

    vision: Layers
    decoder: Layers
    deepest: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer's name, in order. Of `cuts` a cut `c` gives the edge `layers[:c]` and the cloud `layers[c:]`."""
        vision = (f"vision.{index}" for index in range(self.vision))
        decoder = (f"decoder.{index}" for index in range(self.decoder))
        return ("image", *vision, "connector", *decoder, "head")

    def decoder_layer(self, cut: str) -> int:
        """The first decoder layer that the cloud runs at `cut`: 0 before the decoder, all layers from `head` on."""
        return min(max(0, self.place(cut) - self.place("decoder.0")), self.decoder)

    def tower_layer(self, cut: str) -> int:
        """The first tower layer that the cloud runs at `cut`, from `vision.0` on: all layers from `connector` on."""
        return min(self.place(cut) - self.place("vision.0"), self.vision)

    def place(self, cut: str) -> int:
        """The number of layers before `cut`, which may be END. Raises ValueError for an unknown name."""
        return (*self.layers, END).index(cut)

    @property
    def deep_cuts(self) -> tuple[str, ...]:
        """The cuts inside the decoder, `decoder.1` to `head`, where every token crosses as a boundary row."""
        first = self.place("decoder.0")
        return self.layers[first + 1 : None if self.deepest is None else first + 1 + self.deepest]

    @property
    def image_cuts(self) -> tuple[str, ...]:
        """The cuts up to the decoder, named by the first layer that the cloud runs: `image` to `decoder.0`."""
        return self.layers[: self.layers.index("connector") + 2]

    @property
    def cuts(self) -> tuple[str, ...]:
        """Every cut that there is, in order: `layers`, but where layers share what they keep."""
        return (*self.image_cuts, *self.deep_cuts)
