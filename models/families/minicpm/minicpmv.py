"""MiniCPM-V 4.6: a tower that makes one row of four on its way, and Qwen3.5's decoder. Prompts number pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.checks import channels
from cutline.models.families.family import Arrays, Count, Grid, Index, Spread
from cutline.models.families.layer_state import LayerMemory, LayerState
from cutline.models.families.minicpm.slices import MERGE, SlicedFamily
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.pieces import Sides, by_token
from cutline.models.families.positions import frequencies
from cutline.models.families.qwen.delta import LAYER_TYPES, DeltaLayers
from cutline.models.images import Pixels

IMAGE, START, END, SLICE, SLICE_END = "<|image_pad|>", "<image>", "</image>", "<slice>", "</slice>"
NUMBER, NUMBER_END = "<image_id>", "</image_id>"
_OWN_CODE = "transformers has no classes of it, and the folder's own code (auto_map) is never run; minicpmv4_6 runs"
_SQUARE = [MERGE, MERGE]
_SETTINGS = {"merge_kernel_size": _SQUARE, "window_kernel_size": _SQUARE, "merger_times": 1, "downsample_mode": "16x"}


class MiniCPMV(SlicedFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="minicpm-v"):
    """A picture's number is told if they are `numbered`.

    The tower learnt `table` x `table` places, and makes one row of four behind its layer `merging`. The decoder rotates
    `turned` pairs of a head, with base `theta`; its layers without attention are `delta`.
    """

    numbered: bool
    table: Count
    merging: Index
    theta: Spread
    turned: Count
    delta: DeltaLayers

    kinds: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    declined: ClassVar[Mapping[str, str]] = {
        "minicpmv": _OWN_CODE,
        "minicpmo": _OWN_CODE,
        "minicpmv4_7": "its pictures have positions on three axes, which are not known here; minicpmv4_6 runs",
    }
    answering: ClassVar[tuple[str, ...]] = ("MiniCPMV4_6ForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("MiniCPMV4_6ImageProcessor",)
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
