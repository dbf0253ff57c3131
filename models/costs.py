"""What every layer of a model takes: weights, arithmetic, cache, and what crosses a cut before it.

    2 · parameters · rows + 4 · rows · context · attends     floating-point operations

A multiplication and an addition for each weight and row; in attention as many for each pair of a row and one that it
sees, once for the scores and once for the values, over `attends` values (heads times their size). Norms, activations
and softmax are left out: they are some percent of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cutline.core.wire import Wire, bytes_per_row
from cutline.models.bundle import Manifest
from cutline.models.families import Grid

Unit = Literal["patch", "image token", "token", "answer"]  # what a row of a layer stands for

_UNITS: dict[str, Unit] = {"connector": "image token", "decoder": "token", "head": "answer"}  # patches elsewhere

VALUE_BYTES = 4  # of a value of rows and of the key-value cache: float32, as devices have it whatever their weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Rows of one request: patches in the tower, how many of them each one sees, image tokens, tokens of the prompt."""

    images: int = 1
    patches: int
    seen: int
    image_tokens: int
    tokens: int

    @property
    def tiles(self) -> int:
        """How many times the tower runs: for each tile, or each image of a family that has none."""
        return round(self.patches / self.seen) if self.seen else 0

    def rows(self, unit: Unit) -> int:
        """How many `unit` a prefill has; of the head's rows only the last is wanted."""
        return {"patch": self.patches, "image token": self.image_tokens, "token": self.tokens, "answer": 1}[unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One layer. `unit` is what its rows are, `attends` the width of its attention (0 without one).

    `crosses` is what a row of the boundary before it stands for, None before `image`, where a picture file crosses;
    `width` is that of such a row.
    """

    name: str
    parameters: int
    unit: Unit
    attends: int
    kv_bytes_per_token: int
    crosses: Unit | None
    width: int

    def flops(self, rows: int, context: float) -> float:
        """Operations for `rows` rows that see `context` rows each, themselves included."""
        return 2.0 * self.parameters * rows + 4.0 * rows * context * self.attends

    def prefill_flops(self, sizes: Sizes) -> float:
        """Operations for a request up to its first token. A prompt's rows see half of it on average."""
        context = sizes.seen if self.unit == "patch" else (sizes.tokens + 1) / 2
        return self.flops(sizes.rows(self.unit), context)

    def token_flops(self, context: int) -> float:
        """Operations for one more token that sees `context` tokens; 0 before the decoder."""
        return self.flops(1, context) if self.unit in ("token", "answer") else 0.0

    def boundary(self, sizes: Sizes) -> tuple[int, int] | None:
        """Rows and width of what crosses the cut before this layer for a whole prompt; None at `image`."""
        return None if self.crosses is None else (sizes.rows(self.crosses), self.width)

    def boundary_bytes(self, sizes: Sizes, wire: Wire) -> int | None:
        """Bytes of that boundary, its messages' own not counted; None at `image`."""
        return None if self.crosses is None else sizes.rows(self.crosses) * bytes_per_row(wire, self.width)


def layer_costs(manifest: Manifest, *, value_bytes: int = VALUE_BYTES) -> tuple[LayerCost, ...]:
    """The cost of each layer of the model's line, in order, with `value_bytes` a value of its cache."""
    vision, decoder = manifest.vision, manifest.decoder
    cache = 2 * decoder.kv_heads * decoder.head_dim * value_bytes

    def cost(name: str, parameters: int) -> LayerCost:
        kind = name.partition(".")[0]
        unit = _UNITS.get(kind, "patch")
        attends = {"vision": vision.width, "decoder": decoder.heads * decoder.head_dim}.get(kind, 0)
        crosses: Unit | None = None if kind == "image" else "patch" if kind in ("vision", "connector") else "token"
        return LayerCost(
            name=name,
            parameters=parameters,
            unit=unit,
            attends=attends,
            kv_bytes_per_token=cache if kind == "decoder" else 0,
            crosses="image token" if name == "decoder.0" else crosses,
            width=vision.width if crosses == "patch" else 0 if crosses is None else decoder.width,
        )

    return tuple(map(cost, manifest.line.layers, manifest.parameters))


def request_sizes(manifest: Manifest, grids: Sequence[Grid], tokens: int) -> Sizes:
    """The sizes of a request of images that became `grids`, with a prompt of `tokens`, image tokens included."""
    family = manifest.family
    patches = [family.patches(grid) for grid in grids]
    # Families that cut an image into tiles attend within each; (0, 0) is their one tile. Others see the whole image.
    tiled = family.takes((0, 0))
    seen = family.patches((0, 0)) if tiled else round(sum(one * one for one in patches) / max(1, sum(patches)))
    return Sizes(
        images=len(grids),
        patches=sum(patches),
        seen=min(seen, sum(patches)),
        image_tokens=sum(map(family.tokens, grids)),
        tokens=tokens,
    )
