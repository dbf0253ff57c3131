"""What a layer of the decoder keeps of a session: keys and values, or what takes their place.

Keys, values and rows by position rewind: who goes back to a position forgets what stands behind it. The state of a
recurrence does not: it is kept as of a position, with what went into it since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of every position, which rows attend to.

    They have so many `heads` of a `width`, where those are not the decoder's own.
    """

    heads: int | None = None
    width: int | None = None

    def sizes(self, heads: int, width: int) -> tuple[int, int]:
        """How many heads there are and how wide, in a decoder with so many `heads` of a `width`."""
        return self.heads or heads, self.width or width


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Nothing of its own: rows attend to the keys and values that an earlier `layer` keeps."""

    layer: int


@dataclass(frozen=True, slots=True)
class RecentRows:
    """Rows of `width`, one a position, of which a row sees its own and the `before` it."""

    width: int
    before: int

    @property
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of what a device's graph takes of them, as that of a state."""
        return {"conv": (self.width, self.before)}


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A state of `parts`, tensors of these shapes by name, which every row moves on, and none moves back.

    What moves it on is a row of `width`: with that a layer can do so again, without its weights.
    """

    width: int
    parts: Mapping[str, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        """Of the states once, in float32."""
        return 4 * sum(map(math.prod, self.parts.values()))

    @property
    def moves(self) -> int:
        """Operations with which a row is answered and moves the states on: its products with the largest part, thrice.

        Once for what was known of it, once for the correction, once for the answer.
        """
        return 6 * max(map(math.prod, self.parts.values()))


@dataclass(frozen=True, slots=True)
class CrossKeys:
    """Keys and values of the rows beside a prompt, `rows` at most: made once a session, whatever position it is at."""

    rows: int


LayerState = KeysValues | SharedKeys | RecentRows | Recurrence | CrossKeys
KEYS_VALUES = KeysValues()

States = tuple[Any, ...]  # tensors, one for each of a recurrence's parts
Step = Callable[[Any, States], tuple[Any, States]]  # moves a session's states on by rows, and says what they saw


class LayerMemory(Protocol):
    """What a layer without attention kept of the sessions in a pass, whose rows stand behind each other."""

    def recent(self, rows: Any) -> Any:
        """Keep `rows` (n, width), and return what each of them sees (n, before + 1, width), itself last.

        Before a session's first row stand zeros.
        """

    def through(self, rows: Any, step: Step) -> Any:
        """Move the states of each session on by its `rows` (n, width); returns what `step` made of them (n, ...)."""


def layer_with_keys(keeps: LayerState, layer: int) -> int:
    """Which layer keeps the keys that rows attend to in a `layer` that `keeps` so much."""
    return keeps.layer if isinstance(keeps, SharedKeys) else layer


def keys_in_graph(keeps: Sequence[LayerState]) -> dict[str, str]:
    """The outputs of a device's graph for keys and values by its inputs, where the layers keep so much."""
    return {
        name: name.replace("past_key_values", "present")
        for layer, kept in enumerate(keeps)
        if isinstance(kept, KeysValues)
        for name in key_inputs(layer)
    }


def key_inputs(layer: int) -> tuple[str, str]:
    """The inputs of a device's graph for the keys and the values of a layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def states_in_graph(keeps: Sequence[LayerState]) -> dict[str, tuple[int, ...]]:
    """The shape of every other part of what the layers keep, by its name in a graph behind `past.` or `present.`."""
    return {
        f"{layer}.{name}": shape
        for layer, kept in enumerate(keeps)
        if isinstance(kept, RecentRows | Recurrence)
        for name, shape in kept.parts.items()
    }
