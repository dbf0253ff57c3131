"""Mllama (Llama 3.2 Vision): some layers of the decoder attend to pictures, which have no rows among those of tokens.

A picture is one token of the prompt, and beside it the rows of all tiles that it may have, those that it lacks too:
rows before the first picture attend to every one of them, and transformers' tower has real patches see padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.errors import InputError
from cutline.models.families.checks import check_decoder
from cutline.models.families.family import Arrays, Count, Grid, Index
from cutline.models.families.layer_state import KEYS_VALUES, CrossKeys, LayerState
from cutline.models.families.mllama.canvas import CanvasFamily, arrangements
from cutline.models.families.parts import Attention, Decoding, Ops, Parts, TowerSizes
from cutline.models.families.positions import Positions, Sides
from cutline.models.images import Pixels
from cutline.models.layerline import LayerLine
from cutline.models.sight import UNSEEN

IMAGE = "<|image|>"
_MULTIPLE = 8  # of a tile's rows within the tower


class Mllama(CanvasFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="mllama"):
    """The tiles of a picture see each other. `tile_tokens` are a tile's rows behind the tower.

    The tower's rows after the layers `tapped` go into the connector too; its first `local` layers are followed by
    others. `across` are the decoder's layers that attend to pictures.
    """

    tapped: tuple[Index, ...]
    local: Count
    across: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("mllama",)
    apart: ClassVar[frozenset[str]] = CanvasFamily.apart | {"tile_tokens", "tapped", "local", "across"}
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE,)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE}
    answering: ClassVar[tuple[str, ...]] = ("MllamaForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("MllamaImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR
    most_images: ClassVar[int | None] = 4  # which a worker has room for in every slot
    has_sides: ClassVar[bool] = True
    of_one_size: ClassVar[bool] = True
    unchosen: ClassVar[int] = 8
    parts: ClassVar[Parts] = Parts(
        image=(
            "vision_model.patch_embedding",
            "vision_model.pre_tile_positional_embedding",
            "vision_model.gated_positional_embedding",
            "vision_model.layernorm_pre",
        ),
        entering=("vision_model.class_embedding",),
        tower="vision_model.transformer.layers",
        between=("vision_model.layernorm_post", "vision_model.post_tile_positional_embedding"),
        further="vision_model.global_transformer.layers",
        connector=("multi_modal_projector",),
        decoder="language_model",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Mllama:
        """See `Family.of`."""
        check_decoder(config.text_config, ("mllama_text_model",))
        vision = config.vision_config
        if (ratios := [tuple(one) for one in vision.supported_aspect_ratios]) != arrangements(vision.max_num_tiles):
            raise ValueError(f"supported_aspect_ratios {ratios!r}, not all of {vision.max_num_tiles} tiles")
        return cls._checked(
            **cls.read(vision, processor),
            tapped=tuple(vision.intermediate_layers_indices),
            local=vision.num_hidden_layers,
            across=tuple(config.text_config.cross_attention_layers),
        )

    @classmethod
    def tower_sizes(cls, config: Any) -> TowerSizes:
        """The layers of both lists."""
        vision = config.vision_config
        layers = vision.num_hidden_layers + vision.num_global_layers
        return TowerSizes(layers, vision.hidden_size, vision.attention_heads)

    @property
    def taps(self) -> tuple[int, ...]:
        """Those whose rows the connector takes."""
        return self.tapped

    def streams(self, line: LayerLine, cut: str) -> int:
        """Those of the taps end at the connector."""
        return 1 if cut == "decoder.0" or cut in line.deep_cuts else super().streams(line, cut)

    @property
    def tile_patches(self) -> int:
        """Filled up to a multiple."""
        return self.tile_tokens + -self.tile_tokens % _MULTIPLE

    def tokens(self, grid: Grid) -> int:
        """One, whatever the picture."""
        del grid
        return 1

    def expand(self, grid: Grid, number: int) -> str:
        """Its token."""
        del grid, number
        return IMAGE

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Positions count up from 0. A row sees the pictures that came since the last text, without what fills up.

        Raises InputError where they are not one token each.
        """
        del times
        places, patches = np.flatnonzero(image_tokens), self.tile_tokens
        if len(places) != len(grids):
            raise InputError(f"the prompt has {len(places)} image tokens, and there are {len(grids)} images")
        counted = np.arange(len(image_tokens))
        if not grids:
            return Positions(counted[None])
        ends = np.cumsum([rows * cols for rows, cols in grids]) * patches
        begins = [0, *ends[:-1]]
        seen = np.tile([0, len(grids) * self.most * patches, 0], (len(image_tokens), 1))
        first = 0
        for index, place in enumerate(places):
            if place == 0 or not image_tokens[place - 1]:
                first = index
            seen[place:] = begins[first], ends[index], 1
        return Positions(counted[None], sides=Sides(seen, self._order(grids)))

    def _order(self, grids: Sequence[Grid]) -> NDArray[np.int64]:
        """Tiles that there are stand first, of all pictures."""
        tiles = np.arange(len(grids) * self.most)
        missing = tiles % self.most >= np.repeat([rows * cols for rows, cols in grids], self.most)
        ordered = np.concatenate([tiles[~missing], tiles[missing]])
        return (ordered[:, None] * self.tile_tokens + np.arange(self.tile_tokens)).ravel()

    def keeps(self, layer: int) -> LayerState:
        """Keys of pictures, or of tokens."""
        most = self.most_images or 1
        return CrossKeys(most * self.most * self.tile_tokens) if layer in self.across else KEYS_VALUES

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece a picture, with the number of its arrangement, and its rows that fill up."""
        size = len(rows) // max(len(grids), 1)
        return [(rows[at * size : (at + 1) * size], self._beside(grid)) for at, grid in enumerate(grids)]

    def slices(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """As `runs`."""
        return self.runs(rows, grids)

    def _beside(self, grid: Grid) -> Arrays:
        fills = np.ones((self.most, self.tile_patches), np.float32)
        fills[: math.prod(grid), : self.tile_tokens] = 0
        return {"ratio": np.array([[arrangements(self.most).index(grid) + 1]]), "fills": fills.reshape(-1, 1)}

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches of all tiles, behind a row that stands for each tile, with their places."""
        patches, tiles, places, norm, whole = modules
        embedded = patches(pixels).flatten(2).transpose(1, 2)
        rows = embedded.new_zeros(self.most, self.tile_tokens, embedded.shape[2])
        rows[:, 0] = whole
        rows[:, 1:] = tiles(embedded[None], beside["ratio"])[0]
        filled = embedded.new_zeros(self.most, self.tile_patches, embedded.shape[2])
        filled[:, : self.tile_tokens] = norm(places(rows[None], beside["ratio"]))[0]
        return filled.flatten(0, 1)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer. Rows that fill up do not see each other, but all others see them."""
        taps = sum(tap < index for tap in self.tapped)
        width = rows.shape[1] // (1 + taps)
        own = rows[:, :width][None]
        if index == self.local:
            norm, places, module = module
            tiles = norm(own).unflatten(1, (self.most, -1))
            own = places(tiles, beside["ratio"]).flatten(1, 2)
        fills = beside["fills"].type_as(own)
        own = module(own, attention_mask=(fills @ fills.T * float(UNSEEN))[None, None])[0]
        return ops.join([own, rows[:, width:], *([own] if index in self.tapped else [])], 1)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The projection of the tower's rows and of all taps, whose numbers stand in turn."""
        del beside
        (projector,) = modules
        taps = len(self.tapped)
        width = rows.shape[1] // (1 + taps)
        turned = rows[:, width:].unflatten(1, (taps, width)).transpose(1, 2).flatten(1)
        made = ops.join([rows[:, :width], turned], 1).unflatten(0, (self.most, -1))
        return projector(made[:, : self.tile_tokens]).flatten(0, 1)

    def features(self, base: Any, images: dict[str, Any]) -> list[Any]:
        """See `Family.features`."""
        return [base.multi_modal_projector(base.vision_model(**images).last_hidden_state).flatten(0, -2)[None]]

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The tiles of all pictures, and how each is cut."""
        if not images:
            return {}
        ratios = [arrangements(self.most).index(image.grid) + 1 for image in images]
        there = [[int(tile < math.prod(image.grid)) for tile in range(self.most)] for image in images]
        return {
            "pixel_values": np.stack([image.values for image in images])[None],
            "aspect_ratio_ids": np.array([ratios]),
            "aspect_ratio_mask": np.array([there]),
        }

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """Which tiles of which pictures a token sees: (1, n, images, most)."""
        sides = self.positions(image_tokens[0], grids).sides
        if sides is None:
            return {}
        first, last, counts = sides.seen.T[..., None, None]
        begins = np.zeros((len(grids), self.most), np.int64)
        there = np.zeros((len(grids), self.most), np.bool_)
        tile = 0
        for index, grid in enumerate(grids):
            count = math.prod(grid)
            begins[index, :count], there[index, :count] = np.arange(tile, tile + count) * self.tile_tokens, True
            tile += count
        seen = there & (begins >= first) & (begins < last) & (counts > 0)
        return {"cross_attention_mask": seen[None].astype(np.int64)}

    def decoding(self, layer: int) -> Decoding | None:
        """A layer that attends to pictures; the others are Llama's."""
        return _across if layer in self.across else None


def _across(layer: Any, rows: Any, attention: Attention) -> Any:
    own = layer.cross_attn

    def made(sides: Any) -> tuple[Any, Any]:
        keys, values = (part(sides).unflatten(-1, (own.num_key_value_heads, -1)) for part in (own.k_proj, own.v_proj))
        return own.k_norm(keys), values

    query = own.q_norm(own.q_proj(layer.input_layernorm(rows)).unflatten(-1, (own.num_heads, -1)))
    seen, counts = attention.across(query, own.scaling, made)
    rows = rows + layer.cross_attn_attn_gate.tanh() * own.o_proj(seen.flatten(1))
    added = counts * layer.mlp(layer.post_attention_layernorm(rows))
    return rows + layer.cross_attn_mlp_gate.tanh() * added
