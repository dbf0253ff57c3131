"""Gemma 3: most layers of the decoder have a window, and the tokens of a picture see each other both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.checks import ROTATIONS
from cutline.models.families.family import Arrays, Count, Grid, Index
from cutline.models.families.gemma.blocks import picture_blocks
from cutline.models.families.positions import Positions
from cutline.models.families.siglip import SiglipFamily
from cutline.models.sight import Sight

IMAGE, START, END = "<image_soft_token>", "<start_of_image>", "<end_of_image>"


class Gemma3(SiglipFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gemma3"):
    """Layers see the last `window` positions, but those in `full` see all."""

    window: Count
    full: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("gemma3",)
    apart: ClassVar[frozenset[str]] = SiglipFamily.apart | {"window", "full"}
    image_marker: ClassVar[str] = START
    image_token: ClassVar[str | None] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (START, IMAGE, END)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE, "boi_token": START, "eoi_token": END}
    answering: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("Gemma3ImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Gemma3:
        """See `Family.of`."""
        text, vision, tokens = config.text_config, config.vision_config, config.mm_tokens_per_image
        if text.model_type != "gemma3_text":
            raise ValueError(f"a decoder of the kind {text.model_type} (text_config), where gemma3_text is supported")
        for kind, turning in text.rope_parameters.items():
            if turning["rope_type"] not in ROTATIONS:
                raise ValueError(f"rope_type {turning['rope_type']!r} for {kind}; supported: {', '.join(ROTATIONS)}")
        if text.use_bidirectional_attention:
            raise ValueError("use_bidirectional_attention True in its text_config, which is not supported")
        side = math.isqrt(tokens)
        if side**2 != tokens or vision.image_size // vision.patch_size % side:
            raise ValueError(f"mm_tokens_per_image {tokens}, which do not divide the patches of a picture into squares")
        full = (layer for layer, kind in enumerate(text.layer_types) if kind == "full_attention")
        return cls._checked(**cls.read(config, processor, tokens=tokens), window=text.sliding_window, full=tuple(full))

    def expand(self, grid: Grid, number: int) -> str:
        """The image tokens between two marks and empty lines."""
        del number
        return f"\n\n{START}{IMAGE * self.tokens(grid)}{END}\n\n"

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Positions count up from 0; the tokens of each picture are a block.

        Raises InputError where they are none that pictures with these `grids` have.
        """
        del times
        return Positions(np.arange(len(image_tokens))[None], picture_blocks(image_tokens, len(grids), self.tile_tokens))

    def sight(self, layer: int) -> Sight:
        """A window, or all; what stands in the same block behind a row is seen too."""
        return Sight(0 if layer in self.full else self.window, "ahead")

    def rotary(self, layer: int) -> str | None:
        """Layers with a window turn by other frequencies."""
        return "full_attention" if layer in self.full else "sliding_attention"

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """1 for image tokens."""
        del grids
        return {"token_type_ids": image_tokens.astype(np.int32)}
