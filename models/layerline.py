"""The layer line: a model as one ordered line of layers, `image → vision.0..n → connector → decoder.0..m → head`."""

from __future__ import annotations

import msgspec


class LayerLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of layers in a model's vision tower and decoder."""

    vision: int
    decoder: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer's name, in order. A cut `c` gives the edge `layers[:c]` and the cloud `layers[c:]`."""
        vision = (f"vision.{index}" for index in range(self.vision))
        decoder = (f"decoder.{index}" for index in range(self.decoder))
        return ("image", *vision, "connector", *decoder, "head")
