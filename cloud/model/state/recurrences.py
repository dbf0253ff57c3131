"""States that do not rewind, of the sessions in a worker's slots.

A pass reads the states where it begins, and makes new ones as of its last row that is sure to stand; of the drafted
rows behind that it keeps what moves the states on. The next pass begins where the session stands: after so many of the
drafted rows as were right. It first moves the states on by those, which takes no weights, and drops the others.

The states before a pass stay until the next one begins: one that broke, or that nobody waited for, is run again from
where it began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cutline.cloud.model.batch import Stretch
from cutline.models.families.layer_state import Recurrence, Step

_Kept = tuple[tuple[Tensor, ...], Tensor]  # a layer's states, and the rows since


@dataclass(frozen=True, slots=True)
class _Standing:
    """The states of a slot's `layers` as of a `position`, with what moves them on to any later one up to `end`."""

    position: int = 0
    end: int = 0
    layers: dict[int, _Kept] = field(default_factory=dict)

    def reaches(self, position: int) -> bool:
        return self.position <= position <= self.end


class Recurrences:
    """Of the decoder's `layers`, in so many `slots`."""

    def __init__(self, layers: Mapping[int, Recurrence], slots: int, like: Tensor) -> None:
        self._layers, self._like = layers, like
        # What the last pass made, and where it began.
        self._held = [(_Standing(), _Standing())] * slots

    def begin(self, stretches: Sequence[Stretch]) -> None:
        """A pass of `stretches` begins. Raises LookupError where no state is from which one could go on."""
        for stretch in stretches:
            before = self._at(stretch.slot, stretch.start)
            settled = stretch.end - stretch.drafted
            assert settled > stretch.start
            self._held[stretch.slot] = _Standing(settled, stretch.end), replace(before, end=stretch.start)

    def through(self, layer: int, stretches: Sequence[Stretch], rows: Tensor, step: Step) -> Tensor:
        """See `LayerMemory.through`."""
        made = []
        for stretch in stretches:
            after, before = self._held[stretch.slot]
            states, since = before.layers[layer] if before.end else self._none(layer, rows)
            since = since[: stretch.start - before.position]
            sure, drafted = rows[stretch.first : stretch.last].tensor_split([stretch.count - stretch.drafted])
            seen, states = step(torch.cat([since, sure]), states)
            made.append(seen[len(since) :])
            after.layers[layer] = states, drafted.clone()
            if len(drafted):
                made.append(step(drafted, states)[0])
        return torch.cat(made)

    def kept(self, slot: int, count: int) -> int:
        """How many of the first `count` positions of `slot`, which all stand, a session can begin after."""
        found = [min(count, one.end) for one in self._held[slot] if one.position <= count]
        return max(found, default=0)

    def resume(self, slot: int, source: int, count: int) -> None:
        """A session begins in `slot` after the first `count` positions of `source`; what is kept is shared."""
        standing = replace(self._at(source, count), end=count)
        self._held[slot] = standing, standing

    def _at(self, slot: int, position: int) -> _Standing:
        if position == 0:
            return _Standing()
        found = next((one for one in self._held[slot] if one.reaches(position)), None)
        if found is None:
            raise LookupError(f"slot {slot} has no states from which position {position} can be reached")
        return found

    def _none(self, layer: int, rows: Tensor) -> _Kept:
        parts = self._layers[layer].parts.values()
        return tuple(torch.zeros(part, dtype=torch.float32, device=self._like.device) for part in parts), rows[:0]
