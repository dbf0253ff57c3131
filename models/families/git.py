"""GIT: a picture's rows, then a short text that sees them, and an answer; neither turns nor a template.

The rows have no tokens of their own in transformers. Here each stands at a token that BERT has for gaps, which GIT does
not use: it counts where penalties count a prompt's tokens, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.errors import InputError
from cutline.models.encoders.images import ImageRules
from cutline.models.families.checks import channels
from cutline.models.families.family import Grid
from cutline.models.families.parts import Attention, Decoding, Ops, Parts
from cutline.models.families.positions import Positions
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels, Size
from cutline.models.sight import Sight

GAP = "[MASK]"
TEMPLATE = """{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}[MASK]\
{% endif %}{% endfor %}{% endfor %}[CLS]{% for message in messages %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"""


class Git(TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="git"):
    """A picture is one tile: the square in its middle. Its rows, one of which stands for all, see each other."""

    kinds: ClassVar[tuple[str, ...]] = ("git",)
    image_marker: ClassVar[str] = GAP
    markers: ClassVar[tuple[str, ...]] = (GAP, "[CLS]", "[SEP]")
    named: ClassVar[Mapping[str, str]] = {"mask_token": GAP, "cls_token": "[CLS]", "sep_token": "[SEP]"}
    template: ClassVar[str | None] = TEMPLATE
    answering: ClassVar[tuple[str, ...]] = ("GitForCausalLM",)
    processors: ClassVar[tuple[str, ...]] = ("CLIPImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    most_images: ClassVar[int | None] = 1
    images_first: ClassVar[bool] = True
    has_turns: ClassVar[bool] = False
    needs_question: ClassVar[bool] = False
    parts: ClassVar[Parts] = Parts(
        image=("image_encoder.vision_model.embeddings", "image_encoder.vision_model.pre_layrnorm"),
        tower="image_encoder.vision_model.encoder.layers",
        connector=("image_encoder.vision_model.post_layernorm", "visual_projection"),
        decoder="",
        embed="embeddings.word_embeddings",
        layers="encoder.layer",
        norm=None,
        rotary=None,
        placing="embeddings",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Git:
        """See `Family.of`."""
        if config.num_image_with_embedding is not None:
            raise ValueError(f"num_image_with_embedding {config.num_image_with_embedding}, of videos; supported: none")
        tile, patch, crop = config.vision_config.image_size, config.vision_config.patch_size, processor["crop_size"]
        if not isinstance(tile, int) or not isinstance(patch, int):
            raise ValueError(f"image_size {tile!r} and patch_size {patch!r} in its vision_config, not one number each")
        if not processor["do_center_crop"] or dict(crop) != {"height": tile, "width": tile}:
            raise ValueError(f"crop_size {dict(crop)!r} in its image processor, and a tower that sees {tile}")
        if dict(processor["size"]) != {"shortest_edge": tile}:
            raise ValueError(
                f"size {dict(processor['size'])!r} in its image processor; supported: a shortest_edge {tile}"
            )
        return cls._checked(
            tile=tile,
            patch=patch,
            tile_tokens=(tile // patch) ** 2 + 1,
            mean=channels("image_mean", processor["image_mean"]),
            std=channels("image_std", processor["image_std"]),
        )

    @property
    def tile_patches(self) -> int:
        """With the one that stands for all."""
        return self.tile_tokens

    @property
    def _rules(self) -> ImageRules:
        return ImageRules(side=self.tile, shortest_edge=self.tile, mean=self.mean, std=self.std)

    def preprocess(self, image: Image.Image) -> Pixels:
        """The one tile (1, 3, tile, tile)."""
        return Pixels(self._rules.preprocess(image), (0, 0))

    def grid(self, size: Size) -> Grid:
        """That of one tile."""
        del size
        return (0, 0)

    def fitted(self, size: Size) -> Size:
        """As short as the tile, in proportion; the middle of it is seen."""
        return self._rules.resized(size)

    def is_settled(self, size: Size) -> bool:
        """Whether its shorter side is the tile's."""
        return min(size) == self.tile

    def takes(self, grid: Grid) -> bool:
        """Whether it is that of one tile."""
        return grid == (0, 0)

    def expand(self, grid: Grid, number: int) -> str:
        """A gap for every row."""
        del number
        return GAP * self.tokens(grid)

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Those of text count up from 0; rows of the picture have none, are a block, and stand first.

        Raises InputError where they do not.
        """
        del times
        count = int(image_tokens.sum())
        if len(grids) > 1 or not image_tokens[:count].all():
            raise InputError("a prompt of this model begins with the rows of one image, or has none")
        text = np.arange(len(image_tokens) - count)
        return Positions(np.concatenate([np.full(count, -1), text])[None], ((0, count),) if count else ())

    def sight(self, layer: int) -> Sight:
        """All before a row; rows of the picture see each other."""
        del layer
        return Sight(0, "ahead")

    def given_ids(self, ids: NDArray[np.int64], image_tokens: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Those of text alone."""
        return ids[~image_tokens]

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, and their norm."""
        del beside
        embeddings, norm = modules
        return norm(embeddings(pixels)).flatten(0, 1)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The tower's last norm, then the projection."""
        del beside, ops
        norm, projection = modules
        return projection(norm(self.by_tile(rows))).flatten(0, 1)

    def features(self, base: Any, images: dict[str, Any]) -> list[Any]:
        """See `Family.features`."""
        return [base.visual_projection(base.image_encoder(**images).last_hidden_state)]

    def placed(self, module: Any, rows: Any, positions: Any) -> Any:
        """Words get their places and a norm; rows of a picture have had theirs."""
        words = module(inputs_embeds=rows[None] + 0, position_ids=positions.clamp(min=0)[None])[0]  # it adds in place
        return words.where((positions >= 0)[:, None], rows)

    def decoding(self, layer: int) -> Decoding | None:
        """BERT's layer, whose attention asks no registry: norms follow what they are about."""
        del layer
        return _decoded


def _decoded(layer: Any, rows: Any, attention: Attention) -> Any:
    own = layer.attention.self
    query, key, value = (
        part(rows).unflatten(-1, (own.num_attention_heads, -1)) for part in (own.query, own.key, own.value)
    )
    seen = attention.own(query, key, value, own.attention_head_size**-0.5).flatten(1)
    return layer.feed_forward_chunk(layer.attention.output(seen, rows))
