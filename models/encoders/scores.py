"""How rows of images and texts are compared: as a choice among the texts (CLIP), or each text by itself (SigLIP)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Rows = NDArray[np.float32]


class ScoreRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The score of an image and a text: the product of their rows times `scale` plus `bias`.

    A `softmax` makes them the probabilities of one text among all, a `sigmoid` each text's own.
    """

    kind: Literal["softmax", "sigmoid"]
    scale: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    bias: Finite = 0.0

    def logits(self, images: Rows, texts: Rows) -> Rows:
        """The scores (images, texts) of rows of unit length."""
        return np.asarray(images @ texts.T * self.scale + self.bias, np.float32)

    def probabilities(self, logits: Rows) -> Rows:
        """The scores as probabilities, between 0 and 1."""
        if self.kind == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), np.float32)
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def of_unit_length(rows: Rows) -> Rows:
    """Every row divided by its length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
