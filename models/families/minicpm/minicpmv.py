"""MiniCPM-V 4.6: a tower that makes one row of four on its way, and Qwen3.5's decoder.

The arithmetic is that of MiniCPM-V's image processor (transformers, PIL backend): a picture is seen as a whole, of
about the area of one slice, and a larger one in slices too. Each is a piece of its own for the tower. Prompts number
pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.family import Arrays, Count, Grid, Index, Spread, channels
from cutline.models.families.layer_state import LayerMemory, LayerState
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.pieces import PiecedFamily, Sides, by_token
from cutline.models.families.qwen.delta import LAYER_TYPES, DeltaLayers
from cutline.models.families.qwen.qwenvl import frequencies
from cutline.models.images import MAX_PIXELS, Pixels, normalised

IMAGE, START, END, SLICE, SLICE_END = "<|image_pad|>", "<image>", "</image>", "<slice>", "</slice>"
NUMBER, NUMBER_END = "<image_id>", "</image_id>"
MERGE = 2  # rows along a side that become one, within the tower and once more behind it
MAX_SLICES = 64  # of a picture; published models have 9
_OWN_CODE = "transformers has no classes of it, and the folder's own code (auto_map) is never run; minicpmv4_6 runs"
_SQUARE = [MERGE, MERGE]
_SETTINGS = {"merge_kernel_size": _SQUARE, "window_kernel_size": _SQUARE, "merger_times": 1, "downsample_mode": "16x"}


class MiniCPMV(PiecedFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="minicpm-v"):
    """A picture has `most` slices at most, or with 1 none, each of about `side` x `side` pixels.

    Its number is told if they are `numbered`. The tower learnt `table` x `table` places, and makes one row of four
    behind its layer `merging`. The decoder rotates `turned` pairs of a head, with base `theta`; its layers without
    attention are `delta`.
    """

    most: Count
    side: Count
    numbered: bool
    table: Count
    merging: Index
    theta: Spread
    turned: Count
    delta: DeltaLayers

    def __post_init__(self) -> None:
        if self.most > MAX_SLICES or self.most * self.side**2 > MAX_PIXELS or self.side < self.factor:
            raise ValueError(
                f"{self.most} slices of {self.side} pixels; supported: of one image token, {self.factor} pixels, at "
                f"least, up to {MAX_SLICES}, and {MAX_PIXELS} pixels"
            )

    kinds: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    declined: ClassVar[Mapping[str, str]] = {
        "minicpmv": _OWN_CODE,
        "minicpmo": _OWN_CODE,
        "minicpmv4_7": "its pictures have positions on three axes, which are not known here; minicpmv4_6 runs",
    }
    answering: ClassVar[tuple[str, ...]] = ("MiniCPMV4_6ForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("MiniCPMV4_6ImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END, SLICE, SLICE_END, NUMBER, NUMBER_END)
    named: ClassVar[Mapping[str, str]] = {
        "image_token": IMAGE,
        "image_start_token": START,
        "image_end_token": END,
        "slice_start_token": SLICE,
        "slice_end_token": SLICE_END,
        "image_id_start_token": NUMBER,
        "image_id_end_token": NUMBER_END,
    }
    apart: ClassVar[frozenset[str]] = frozenset({"table", "merging", "theta", "turned", "delta"})
    parts: ClassVar[Parts] = Parts(
        image=("vision_tower.embeddings",),
        tower="vision_tower.encoder.layers",
        merging=("vision_tower.vit_merger", "insert_layer_id"),
        connector=("vision_tower.post_layernorm", "merger"),
        decoder="language_model",
        mixer="linear_attn",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> MiniCPMV:
        """See `Family.of`; tower and image processor must have the same patches."""
        text, vision = config.text_config, config.vision_config
        rope = text.rope_parameters
        if (text.model_type, rope["rope_type"]) != ("qwen3_5_text", "default"):
            raise ValueError(
                f"a decoder of the kind {text.model_type} and rope_type {rope['rope_type']!r} in its text_config; "
                "supported: qwen3_5_text and 'default'"
            )
        if others := set(text.layer_types) - LAYER_TYPES:
            raise ValueError(f"layer_types {min(others)!r}; supported: {' and '.join(sorted(LAYER_TYPES))}")
        for name, expected in _SETTINGS.items():
            found = getattr(vision if name == "window_kernel_size" else config, name)
            if (list(found) if isinstance(found, tuple) else found) != expected:
                raise ValueError(f"{name} {found!r}, where {expected!r} is supported")
        if processor["downsample_mode"] != config.downsample_mode or processor["patch_size"] != vision.patch_size:
            raise ValueError(
                f"patch_size {processor['patch_size']!r} and downsample_mode {processor['downsample_mode']!r} in its "
                f"image processor, and {vision.patch_size} and {config.downsample_mode!r} in its config"
            )
        if not 0 <= config.insert_layer_id < vision.num_hidden_layers:
            raise ValueError(f"insert_layer_id {config.insert_layer_id}, which is none of its tower's layers")
        head = text.head_dim * rope.get("partial_rotary_factor", 1.0)
        return cls._checked(
            patch=vision.patch_size,
            mean=channels("image_mean", processor["image_mean"]),
            std=channels("image_std", processor["image_std"]),
            most=processor["max_slice_nums"] if processor["slice_mode"] else 1,
            side=processor["scale_resolution"],
            numbered=processor["use_image_id"],
            table=vision.image_size // vision.patch_size,
            merging=config.insert_layer_id,
            theta=rope["rope_theta"],
            turned=int(head) // 2,
            delta=DeltaLayers.read(text),
        )

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        return self.patch * MERGE**2

    def field(self, grid: Grid) -> Sides | None:
        """Rows and columns of a picture's slices: as near to its proportions as can be; None for a small one's."""
        height, width = grid
        wanted, count = math.log(width / height), min(math.ceil(width * height / self.side**2), self.most)
        fields = [
            (rows, number // rows)
            for number in range(max(2, count - 1), min(count + 1, self.most) + 1)
            for rows in range(1, number + 1)
            if number % rows == 0
        ]
        off = {field: abs(wanted - math.log(field[1] / field[0])) for field in fields}
        # Of two fields as near the one with more rows counts, and of those the first.
        return min(fields, key=lambda field: (off[field], -field[0])) if count > 1 else None

    def scaled(self, height: float, width: float) -> Sides:
        """Height and width of a piece in these proportions: whole image tokens, of about the area of a slice."""
        high = int(self.side / math.sqrt(width / height))
        wide = int(high * (width / height))
        return self._multiple(high, self.factor), self._multiple(wide, self.factor)

    def sizes(self, grid: Grid) -> list[Sides]:
        """Height and width of the whole picture as a piece, then of its slices, row by row."""
        (height, width), field = grid, self.field(grid)
        if field is None:
            return [self.scaled(*grid)]
        rows, cols = field
        slice_ = self.scaled(self._multiple(height, rows) / rows, self._multiple(width, cols) / cols)
        return [self.scaled(*grid), *[slice_] * (rows * cols)]

    def _multiple(self, side: int, of: int) -> int:
        return max(round(side / of) * of, of)

    def pieces(self, grid: Grid) -> list[Sides]:
        """See `PiecedFamily.pieces`."""
        return [(high // self.patch, wide // self.patch) for high, wide in self.sizes(grid)]

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (n, 3 * patch * patch) of all pieces, row by row."""
        grid = self.grid(image.size)
        (down, across), *slices = self.sizes(grid)
        made = [np.asarray(self.resize(image, (across, down)))]
        if field := self.field(grid):
            (rows, cols), (high, wide) = field, slices[0]
            sliced = np.asarray(self.resize(image, (cols * wide, rows * high)))
            made += list(sliced.reshape(rows, high, cols, wide, 3).swapaxes(1, 2).reshape(-1, high, wide, 3))
        patches = np.concatenate([self.cut(piece) for piece in made]).transpose(0, 3, 1, 2)
        return Pixels(normalised(patches, self.mean, self.std).reshape(len(patches), -1), grid)

    def tokens(self, grid: Grid) -> int:
        """One for each `MERGE` x `MERGE` rows behind the tower."""
        return self.patches(grid) // MERGE**4

    def merged(self, layer: int) -> int:
        """Behind the layer `merging` a row is made of four."""
        return MERGE**2 if layer > self.merging else 1

    def tower_weights(self, index: int, modules: Sequence[Any]) -> int:
        """What comes after the merger's attention works on a quarter of the rows."""
        counts = [super(MiniCPMV, self).tower_weights(index, [module]) for module in modules]
        if index != self.merging:
            return sum(counts)
        each = super().tower_weights(index, [modules[1].layer_norm1, modules[1].self_attn])
        return counts[0] + each + (counts[1] - each) // MERGE**2

    def expand(self, grid: Grid, number: int) -> str:
        """Its number, the whole picture, then a line for each row of slices."""
        counts = [math.prod(piece) // MERGE**4 for piece in self.pieces(grid)]
        rows, cols = self.field(grid) or (0, 0)
        line = f"{SLICE}{IMAGE * counts[-1]}{SLICE_END}" * cols
        told = f"{NUMBER}{number}{NUMBER_END}" if self.numbered else ""
        return f"{told}{START}{IMAGE * counts[0]}{END}" + "\n".join([line] * rows)

    def keeps(self, layer: int) -> LayerState:
        """See `DeltaLayers.keeps`."""
        return self.delta.keeps(layer)

    def mix(self, module: Any, rows: Any, memory: LayerMemory, ops: Ops) -> Any:
        """See `DeltaLayers.mix`."""
        return self.delta.mix(module, rows, memory, ops)

    def rotations(self, positions: NDArray[np.int64]) -> Arrays:
        """`cos` and `sin` (n, turned)."""
        angles = positions[0][:, None].astype(np.float32) * frequencies(self.theta, self.turned)
        return {"cos": np.cos(angles), "sin": np.sin(angles)}

    def beside(self, piece: Sides) -> Arrays:
        """`places` (n,) are where patches begin; of `merged` (n / 4, 4) and `tokens` (n / 16, 4) four are one."""
        down, across = (np.arange(side) * self.table // side for side in piece)
        rows, cols = piece
        return {
            "places": (down[:, None] * self.table + across).reshape(-1),
            "merged": by_token(piece, MERGE),
            "tokens": by_token((rows // MERGE, cols // MERGE), MERGE),
        }

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, with their places added."""
        (embeddings,) = modules
        convolution = embeddings.patch_embedding
        rows = pixels @ convolution.weight.flatten(1).transpose(0, 1) + convolution.bias
        return rows + embeddings.position_embedding(beside["places"])

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer; its attention splits what is packed, and each piece comes by itself here."""
        layer, *merger = module if index == self.merging else [module]
        rows = rows + _attended(layer.self_attn, layer.layer_norm1(rows)[None], ops)[0]
        rows = rows + layer.mlp(layer.layer_norm2(rows))
        for one in merger:
            four = rows[beside["merged"]]
            four = four + _attended(one.self_attn, one.layer_norm1(four), ops)
            rows = _joined(one, four) + four.mean(1)
        return rows

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The tower's last norm, then the projection of the rows of a token side by side."""
        del ops
        norm, merger = modules
        return _joined(merger.mlp[0], norm(rows)[beside["tokens"]])

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The patches of all pieces side by side."""
        if not images:
            return {}
        pieces, parts = self.split(images)
        patches = np.concatenate(parts).reshape(-1, 3, self.patch, self.patch).transpose(1, 2, 0, 3)
        return {"pixel_values": patches.reshape(1, 3, self.patch, -1), "target_sizes": np.array(pieces, np.int32)}

    def example(self, seed: int) -> Pixels:
        """A picture without slices, wider than high."""
        grid = self.side // 2, self.side * 3 // 2
        values = np.random.default_rng(seed).uniform(-1, 1, (self.patches(grid), 3 * self.patch**2))
        return Pixels(values.astype(np.float32), grid)


def _joined(module: Any, rows: Any) -> Any:
    """Of rows (n, 4, width) one each."""
    return module.linear_2(module.act(module.linear_1(module.pre_norm(rows.flatten(1)))))


def _attended(attention: Any, rows: Any, ops: Ops) -> Any:
    """Rows (pieces, n, width) that have seen all others of their piece."""
    query, key, value = (
        projected(rows).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projected in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    seen = ops.attend(query, key, value, scale=attention.scaling)
    return attention.out_proj(seen.transpose(1, 2).flatten(2))
