"""States of a decoder's layers that do not rewind, on a device: those of the last run, and a few from before it.

A run reads the states that stand and writes others, so that those before it can be kept. Who goes back finds the latest
ones up to there; the rows since are run again with the next ones, or before them if they are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

FEW = 16  # rows that are run again along with new ones; more are run by themselves, and the states after them kept
PIECE = 128  # rows that are run again at once
_FAR = 64  # rows after which states are kept anyway
_KEPT = 2  # states that are kept behind those of an empty conversation


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """The states after the first `position` rows, by name."""

    position: int
    values: Mapping[str, ort.OrtValue]


class LayerStates:
    """Of one conversation, in tensors of these `shapes` by name, which `binding` has as `past.` and `present.`."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], binding: ort.IOBinding) -> None:
        self._shapes, self._binding = shapes, binding
        self._current = _Held(0, self._made())
        self._kept = [self._current]  # in order; the first ones are those of an empty conversation
        self._next = self._made()
        self._spare: list[Mapping[str, ort.OrtValue]] = []

    @property
    def position(self) -> int:
        """After how many rows the states stand."""
        return self._current.position

    def bind(self) -> None:
        """Have the next run read the states, and write others."""
        for name in self._shapes:
            self._binding.bind_ortvalue_input(f"past.{name}", self._current.values[name])
            self._binding.bind_ortvalue_output(f"present.{name}", self._next[name])

    def ran(self, rows: int) -> None:
        """What was written are the states now, after so many `rows` more."""
        if self.position - self._kept[-1].position >= _FAR:
            self.keep()
        before, self._current = self._current, _Held(self.position + rows, self._next)
        self._release(before)
        self._next = self._spare.pop() if self._spare else self._made()
        if rows > FEW:
            self.keep()

    def keep(self) -> None:
        """Keep the states as they stand, in place of the oldest ones."""
        if self._current not in self._kept:
            self._kept.append(self._current)
        if len(self._kept) > 1 + _KEPT:
            self._release(self._kept.pop(1))

    def rollback(self, position: int) -> None:
        """Back to the latest states of `position` rows at most."""
        if self.position <= position:
            return
        before = self._current
        dropped = [held for held in self._kept if held.position > position]
        self._kept = [held for held in self._kept if held.position <= position]
        self._current = self._kept[-1]
        for held in dict.fromkeys([before, *dropped]):
            self._release(held)

    def _release(self, held: _Held) -> None:
        """Tensors that nobody needs are written again."""
        if held is not self._current and held not in self._kept:
            self._spare.append(held.values)

    def _made(self) -> Mapping[str, ort.OrtValue]:
        return {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, *shape), np.float32))
            for name, shape in self._shapes.items()
        }
