"""The cost of every layer of a model: weights, operations, cache, and the boundary before it.

    2 · parameters · rows + 4 · rows · context · attends + rows · moves     floating-point operations

That is one multiplication and one addition for each weight and row. Attention has as many for each pair of a row and
one that it sees, for scores and for values, over `attends` values (heads times their size). A layer with a recurrence
has none, but `moves` its states on. Norms, activations and softmax are left out; they add a few percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cutline.core.wire import Wire, bytes_per_row
from cutline.models.bundle import Manifest
from cutline.models.families import Grid
from cutline.models.families.layer_state import KEYS_VALUES, CrossKeys, KeysValues, RecentRows, Recurrence, SharedKeys

Unit = Literal["patch", "image token", "token", "answer"]  # what a row of a layer stands for

_UNITS: dict[str, Unit] = {"connector": "image token", "decoder": "token", "head": "answer"}  # elsewhere "patch"

VALUE_BYTES = 4  # of a value in rows and KV cache: devices use float32, whatever the type of their weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of rows of one request: `patches` in the tower, each of which sees `seen`, image and prompt tokens.

    Images have `image_rows` behind the tower: one an image token, unless they stand beside the prompt.
    """

    images: int = 1
    patches: int
    seen: int
    image_tokens: int
    tokens: int
    image_rows: int | None = None

    @property
    def tiles(self) -> int:
        """How many times the tower runs: once a tile, or once an image in a family without tiles."""
        return round(self.patches / self.seen) if self.seen else 0

    def rows(self, unit: Unit) -> int:
        """The number of `unit` rows in a prefill; the head computes only the last row."""
        image_rows = self.image_tokens if self.image_rows is None else self.image_rows
        return {"patch": self.patches, "image token": image_rows, "token": self.tokens, "answer": 1}[unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """The cost of one layer. `unit` is what its rows stand for, `attends` the width of its attention, or 0.

    `crosses` is what the rows of the boundary before it stand for, and `width` is their width. It is None before
    `image`, where an image file crosses. There are `streams` rows for each, or one as wide as all of them together.
    Of a layer of the tower, and of that boundary, a row is made of `merged` patches. A row sees the last `window` rows,
    or with 0 all. What a session keeps of the layer whatever its length are `state_bytes`; its layer moves them on with
    `moves` operations a row. Of a layer that attends to pictures beside the prompt `across` counts the weights that
    their rows are multiplied with, once a prompt; a picture has `beside` rows.
    """

    name: str
    parameters: int
    unit: Unit
    attends: int
    kv_bytes_per_token: int
    crosses: Unit | None
    width: int
    streams: int = 1
    merged: int = 1
    window: int = 0
    state_bytes: int = 0
    moves: int = 0
    across: int = 0
    beside: int = 0

    def flops(self, rows: int, context: float) -> float:
        """Operations for `rows` rows, each of which sees `context` rows including itself; in the tower, patches."""
        if self.unit == "patch":
            rows, context = rows // self.merged, context / self.merged
        seen = min(context, self.window) if self.window else context
        return (2.0 * self.parameters + 4.0 * seen * self.attends + self.moves) * rows

    def prefill_flops(self, sizes: Sizes) -> float:
        """Operations of a prefill. A row of the prompt sees half of the prompt on average."""
        if self.across:
            beside = sizes.rows("image token")
            return 2.0 * self.across * beside + self._across_flops(sizes.rows(self.unit), beside)
        context = sizes.seen if self.unit == "patch" else (sizes.tokens + 1) / 2
        return self.flops(sizes.rows(self.unit), context)

    def token_flops(self, context: int) -> float:
        """Operations for one more token that sees `context` tokens; 0 before the decoder."""
        if self.across:
            return self._across_flops(1, self.beside)
        return self.flops(1, context) if self.unit in ("token", "answer") else 0.0

    def _across_flops(self, rows: int, beside: int) -> float:
        return (2.0 * (self.parameters - self.across) + 4.0 * beside * self.attends) * rows

    def boundary(self, sizes: Sizes) -> tuple[int, int] | None:
        """Rows and width of the boundary before this layer for a whole prompt; None at `image`."""
        if self.crosses is None:
            return None
        return sizes.rows(self.crosses) // self.merged * self.streams, self.width

    def boundary_bytes(self, sizes: Sizes, wire: Wire) -> int | None:
        """Bytes of that boundary without the overhead of messages; None at `image`."""
        found = self.boundary(sizes)
        return None if found is None else found[0] * bytes_per_row(wire, found[1])


def layer_costs(manifest: Manifest, *, value_bytes: int = VALUE_BYTES) -> tuple[LayerCost, ...]:
    """The cost of each layer on the model's line, in order; `value_bytes` is the size of a value in its KV cache."""
    vision, decoder = manifest.vision, manifest.decoder

    def cost(name: str, parameters: int) -> LayerCost:
        kind = name.partition(".")[0]
        unit = _UNITS.get(kind, "patch")
        layer = int(name.partition(".")[2]) if kind == "decoder" else None
        kept = None if layer is None else manifest.family.keeps(layer)
        attended = manifest.family.keeps(kept.layer) if isinstance(kept, SharedKeys) else kept
        sizes = attended if isinstance(attended, KeysValues) else KEYS_VALUES
        kv_heads, head_dim = sizes.sizes(decoder.kv_heads, decoder.head_dim)
        keys = 2 * kv_heads * head_dim * value_bytes
        attends = {"vision": vision.width, "decoder": decoder.heads * head_dim}.get(kind, 0)
        beside = manifest.family.rows(manifest.family.example(0).grid) if isinstance(kept, CrossKeys) else 0
        recent = kept.width * value_bytes if isinstance(kept, RecentRows) else 0
        crosses: Unit | None = None if kind == "image" else "patch" if kind in ("vision", "connector") else "token"
        streams = 1 if crosses is None else manifest.family.streams(manifest.line, name)
        merged = manifest.family.merged(manifest.line.tower_layer(name)) if crosses == "patch" else 1
        deep = name in manifest.line.deep_cuts
        width = 0 if crosses is None else vision.width if crosses == "patch" else decoder.width
        return LayerCost(
            name=name,
            parameters=parameters,
            unit=unit,
            attends=attends if kept is None or isinstance(kept, KeysValues | SharedKeys | CrossKeys) else 0,
            kv_bytes_per_token=keys if isinstance(kept, KeysValues) else recent,
            crosses="image token" if name == "decoder.0" else crosses,
            width=width * streams if deep else width,
            streams=1 if deep else streams,
            merged=merged,
            window=0 if layer is None else manifest.family.sight(layer).window,
            state_bytes=kept.bytes if isinstance(kept, Recurrence) else keys * beside,
            moves=kept.moves if isinstance(kept, Recurrence) else 0,
            across=2 * decoder.width * decoder.kv_heads * decoder.head_dim if beside else 0,
            beside=beside,
        )

    return tuple(map(cost, manifest.line.layers, manifest.parameters))


def request_sizes(manifest: Manifest, grids: Sequence[Grid], tokens: int) -> Sizes:
    """The sizes of a request with images of these `grids` and a prompt of `tokens`, image tokens included."""
    family = manifest.family
    patches = [family.patches(grid) for grid in grids]
    pairs = sum(rows * family.seen(grid) for rows, grid in zip(patches, grids, strict=True))
    seen = round(pairs / max(1, sum(patches)))
    return Sizes(
        images=len(grids),
        patches=sum(patches),
        seen=min(seen, sum(patches)),
        image_tokens=sum(map(family.tokens, grids)),
        image_rows=sum(map(family.rows, grids)) if family.has_sides else None,
        tokens=tokens,
    )
