"""Which modules of a transformers model make up a family's line, and what its arithmetic takes of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Ops:
    """What a family's arithmetic takes of torch: `scaled_dot_product_attention`, and `cat` of tensors along an axis.

    Layers of the decoder without attention may take the gated delta rule too: of queries and keys (n, heads, width),
    values (n, value heads, width), the logarithms of their `decay` and their `weight` (n, value heads), and a `state`
    it makes what the queries saw (n, value heads, width), and the next state.
    """

    attend: Callable[..., Any]
    join: Callable[[list[Any], int], Any]
    delta_rule: Callable[..., tuple[Any, Any]] | None = None


class Attention(Protocol):
    """What a layer of the decoder attends with, for the rows of a pass; queries are rows (n, heads, width)."""

    def own(self, query: Any, key: Any, value: Any, scale: float) -> Any:
        """Of tokens, whose keys and values are kept: each row sees what its family's `sight` says.

        Rows as of `query`; keys and values may have fewer heads.
        """

    def shared(self, query: Any, scale: float) -> Any:
        """As `own`, of the tokens whose keys and values an earlier layer keeps: see `SharedKeys`."""

    def turned(self, rows: Any) -> Any:
        """Rows (n, heads, width), rotated as a whole by where they stand, in the way of the layer: see `rotary`."""

    @property
    def given(self) -> Any:
        """What the layer is given beside its rows (n, `Family.layer_inputs`)."""

    def across(self, query: Any, scale: float, made: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Of pictures beside a prompt: rows as of `query`, and (n, 1) whether each counts; see `Positions.sides`.

        Keys and values (m, heads, width) are `made` of their rows once a session. Rows of a prompt without pictures
        see zeros, and do not count.
        """


def rotate(rows: Any, cos: Any, sin: Any, join: Callable[[list[Any], int], Any]) -> Any:
    """Rows (n, heads, width) as `Attention.turned` gives them, by cosines and sines (n, 1, width); see `Ops.join`."""
    first, last = rows.chunk(2, -1)
    return rows * cos + join([-last, first], -1) * sin


# Of a layer's module, or of several, rows (n, width) and its attention: the rows after the layer.
Decoding = Callable[[Any, Any, Attention], Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """The names of the modules that hold the layers of a family's line, within transformers' `base_model`.

    `image` and `connector` may be several modules; `tower` is a list with one module for each layer. If `further` is
    a list of later layers, its first one is run by the modules `between` the two lists and its own, in this order.
    If a module behind one of the tower's layers makes one row of several, `merging` is its name, and that of the
    config's setting with the layer's index. Parameters that `enter` takes behind the modules of the image are
    `entering`, and those that `leave` takes behind those of the connector `learnt`.

    `decoder` may be "", the base model itself. The names of its parts count within it: what embeds tokens, the list of
    layers, the last norm, the rotary embedding and what tells rows their places as they enter, all three of which are
    None where there is none. If layers are given something beside their rows, `giving` makes it: first the table by
    token, then other modules. `mixer` is what the decoder's layers without attention have in its place. The head is
    transformers' own `get_output_embeddings`. What the base model has beside all these is `unused`.
    """

    image: tuple[str, ...]
    tower: str
    connector: tuple[str, ...]
    decoder: str
    learnt: tuple[str, ...] = ()
    entering: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    further: str | None = None
    merging: tuple[str, str] | None = None
    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str | None = "norm"
    rotary: str | None = "rotary_emb"
    mixer: str | None = None
    placing: str | None = None
    giving: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def tower_names(self, base: Any) -> list[tuple[str, ...]]:
        """The names of the modules of each of the tower's layers within the `base` model, in order."""
        lists = (self.tower, *([] if self.further is None else [self.further]))
        names = [
            (*(self.between if name == self.further and index == 0 else ()), f"{name}.{index}")
            for name in lists
            for index in range(len(base.get_submodule(name)))
        ]
        if self.merging is not None:
            merger, setting = self.merging
            names[getattr(base.config, setting)] += (merger,)
        return names

    def of_decoder(self, name: str) -> str:
        """The name of one of the decoder's parts within the base model."""
        return f"{self.decoder}.{name}" if self.decoder else name

    def modules(self, model: Any) -> Modules:
        """The modules of transformers' `model`."""
        base = model.base_model

        def own(name: str | None) -> Any:
            return None if name is None else base.get_submodule(self.of_decoder(name))

        return Modules(
            image=[base.get_submodule(name) for name in self.image],
            entering=[attrgetter(name)(base) for name in self.entering],
            tower=[[base.get_submodule(name) for name in names] for names in self.tower_names(base)],
            connector=[base.get_submodule(name) for name in self.connector],
            learnt=[attrgetter(name)(base) for name in self.learnt],
            decoder=base.get_submodule(self.decoder),
            embed=own(self.embed),
            layers=list(own(self.layers)),
            norm=own(self.norm),
            rotary=own(self.rotary),
            placing=own(self.placing),
            giving=[own(name) for name in self.giving],
            head=model.get_output_embeddings(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Modules:
    """What `Parts` names, of one model."""

    image: list[Any]
    entering: list[Any]
    tower: list[list[Any]]  # of each layer
    connector: list[Any]
    learnt: list[Any]
    decoder: Any
    embed: Any
    layers: list[Any]
    norm: Any | None
    rotary: Any | None
    placing: Any | None
    giving: list[Any]
    head: Any

    @property
    def last(self) -> list[Any]:
        """The modules of the layer `head`."""
        return [self.head] if self.norm is None else [self.norm, self.head]

    def chosen(self, rows: Any) -> Any:
        """The logits of rows that come out of the decoder's last layer, as the head's weights give them."""
        return self.head(rows if self.norm is None else self.norm(rows))

    def capped(self, logits: Any) -> Any:
        """`logits` below the decoder's cap, if it has one."""
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """A vision tower's `layers`, the `width` of its rows and its attention `heads`."""

    layers: int
    width: int
    heads: int
