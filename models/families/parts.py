"""Which modules of a transformers model make up a family's line, and what its arithmetic takes of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


class Attend(Protocol):
    """Attention of a decoder's layer: `key` and `value` are kept, and each row sees what its family's `sight` says."""

    def __call__(self, query: Any, key: Any, value: Any, scale: float) -> Any:
        """Rows (n, heads, width) of `query` alike; keys and values may have fewer heads."""


# Of a layer's module, rows (n, width) and its attention: the rows after the layer.
Decoding = Callable[[Any, Any, Attend], Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """The names of the modules that hold the layers of a family's line, within transformers' `base_model`.

    `image` and `connector` may be several modules; `tower` is a list with one module for each layer, and `further` has
    lists of its later layers. Parameters of the base model itself that `leave` takes behind the modules of the
    connector are `learnt`.

    `decoder` may be "", the base model itself. The names of its parts count within it: what embeds tokens, the list of
    layers, the last norm, the rotary embedding and what tells rows their places as they enter, all three of which are
    None where there is none. `mixer` is what the decoder's layers without attention have in its place. The head is
    transformers' own `get_output_embeddings`.
    """

    image: tuple[str, ...]
    tower: str
    connector: tuple[str, ...]
    decoder: str
    learnt: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str | None = "norm"
    rotary: str | None = "rotary_emb"
    mixer: str | None = None
    placing: str | None = None

    def tower_names(self, base: Any) -> list[str]:
        """The names of the tower's layers within the `base` model, in order."""
        lists = (self.tower, *self.further)
        return [f"{name}.{index}" for name in lists for index in range(len(base.get_submodule(name)))]

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
            tower=[base.get_submodule(name) for name in self.tower_names(base)],
            connector=[base.get_submodule(name) for name in self.connector],
            learnt=[getattr(base, name) for name in self.learnt],
            decoder=base.get_submodule(self.decoder),
            embed=own(self.embed),
            layers=list(own(self.layers)),
            norm=own(self.norm),
            rotary=own(self.rotary),
            placing=own(self.placing),
            head=model.get_output_embeddings(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Modules:
    """What `Parts` names, of one model."""

    image: list[Any]
    tower: list[Any]
    connector: list[Any]
    learnt: list[Any]
    decoder: Any
    embed: Any
    layers: list[Any]
    norm: Any | None
    rotary: Any | None
    placing: Any | None
    head: Any

    @property
    def last(self) -> list[Any]:
        """The modules of the layer `head`."""
        return [self.head] if self.norm is None else [self.norm, self.head]

    def chosen(self, rows: Any) -> Any:
        """The logits of rows that come out of the decoder's last layer, as the head's weights give them."""
        return self.head(rows if self.norm is None else self.norm(rows))


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """A vision tower's `layers`, the `width` of its rows and its attention `heads`."""

    layers: int
    width: int
    heads: int
