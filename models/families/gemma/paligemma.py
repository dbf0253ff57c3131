"""PaliGemma and PaliGemma 2: a picture and a short text that see each other both ways, and an answer behind them.

They come without a chat template: pictures stand first, then all text, then the end of the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.checks import ROTATIONS
from cutline.models.families.family import Arrays, Grid, Index
from cutline.models.families.positions import Positions
from cutline.models.families.siglip import SiglipFamily
from cutline.models.sight import Sight

IMAGE = "<image>"
TEMPLATE = """{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\
{% endif %}{% endfor %}{% endfor %}<bos>{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endfor %}{{ '\\n' }}"""


class PaliGemma(SiglipFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="paligemma"):
    """Layers see the last `window` positions, all with 0; those in `full` see all."""

    window: Annotated[int, msgspec.Meta(ge=0, le=10**7)]
    full: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("paligemma",)
    apart: ClassVar[frozenset[str]] = SiglipFamily.apart | {"window", "full"}
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE,)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE}
    template: ClassVar[str | None] = TEMPLATE
    answering: ClassVar[tuple[str, ...]] = ("PaliGemmaForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("SiglipImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> PaliGemma:
        """See `Family.of`."""
        text, vision = config.text_config, config.vision_config
        if text.model_type not in ("gemma", "gemma2"):
            raise ValueError(f"a decoder of the kind {text.model_type} (text_config); supported: gemma and gemma2")
        if (kind := text.rope_parameters["rope_type"]) not in ROTATIONS:
            raise ValueError(f"rope_type {kind!r} in its text_config; supported: {', '.join(ROTATIONS)}")
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        full = tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
        window = 0 if len(full) == text.num_hidden_layers else text.sliding_window
        tokens = (vision.image_size // vision.patch_size) ** 2
        return cls._checked(**cls.read(config, processor, tokens=tokens), window=window, full=full if window else ())

    def expand(self, grid: Grid, number: int) -> str:
        """The image tokens."""
        del number
        return IMAGE * self.tokens(grid)

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Positions count up from 1; the whole prompt is one block."""
        del grids, times
        return Positions(1 + np.arange(len(image_tokens))[None], ((0, len(image_tokens)),))

    def sight(self, layer: int) -> Sight:
        """All of the prompt, and of what stands behind it all or a window."""
        return Sight(0 if layer in self.full else self.window, "whole")

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """0 for all of the prompt."""
        del grids
        return {"token_type_ids": np.zeros(image_tokens.shape, np.int64)}
