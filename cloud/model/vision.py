"""The way of an image up to the decoder on torch: patches, the vision tower's layers, the connector."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cutline.models.families import Family, Grid, Ops
from cutline.models.layerline import LayerLine

OPS = Ops(attend=functional.scaled_dot_product_attention, join=torch.cat)
Beside = dict[str, Tensor]  # what a tower takes with the rows of an image
Steps = Generator[None, None, Tensor]  # each does some of the work, and the last has the result


def prune(model: Any, family: Family, layers: Sequence[str]) -> None:
    """Leave in a transformers `model` what `layers`, names on its line, need of what it has beside its decoder."""
    parts = family.parts
    tower = {f"vision.{index}": names for index, names in enumerate(parts.tower_names(model))}
    for layer, modules in {"image": parts.image, **tower, "connector": parts.connector}.items():
        if layer not in layers:
            for name in modules:
                model.set_submodule(name, nn.Identity())
    for name in parts.unused:
        if getattr(model, name) is not None:
            setattr(model, name, None)


def _never() -> bool:
    return False


class Unwanted(Exception):
    """Nobody waits any more for the rows that were being made."""


class Layer(nn.Module):
    """One layer of the way: a module, so that what it takes can be watched."""

    def __init__(self, run: Callable[[Any, Beside], Any]) -> None:
        super().__init__()
        self._run = run

    def forward(self, rows: Tensor, beside: Beside) -> Tensor:
        """Rows (n, width) of one image, or of several that the family runs at once."""
        made: Tensor = self._run(rows, beside)
        return made


class Tower:
    """The layers `[start, end)` of a transformers `model`, as far as they stand before the decoder."""

    def __init__(self, model: Any, family: Family, line: LayerLine, *, end: str) -> None:
        made = family.parts.modules(model)
        self.layers = {"image": Layer(partial(family.enter, [*made.image, *made.entering]))}
        for index, layer in enumerate(made.tower):
            step = partial(family.step, layer[0] if len(layer) == 1 else layer, index, ops=OPS)
            self.layers[f"vision.{index}"] = Layer(step)
        self.layers["connector"] = Layer(partial(family.leave, [*made.connector, *made.learnt], ops=OPS))
        self._family = family
        self._line = line
        self._end = min(line.place(end), line.place("decoder.0"))
        self._aborted = _never
        for part in (*made.image, *chain.from_iterable(made.tower), *made.connector):
            for module in part.modules():
                if not any(module.children()):
                    module.register_forward_pre_hook(self._look)

    @torch.inference_mode()
    def steps(
        self, boundary: Tensor, cut: str, grids: Sequence[Grid], *, aborted: Callable[[], bool] = _never
    ) -> Steps:
        """Make rows (n, width) where these layers end, or the decoder begins, from what crosses `cut`; step by step.

        `boundary` is what `preprocess` makes of the images at cut `image`, else rows (n, width). The images became
        `grids`. A step is a layer of a slice, a tile or an image by itself, so that rows do not depend on what else is
        encoded. A layer of a large image takes seconds on a processor: before each of its modules it is looked whether
        it is `aborted`, and Unwanted raised.
        """
        layers = self._line.layers[self._line.place(cut) : self._end]
        if not layers:
            return boundary
        made = []
        for rows, arrays in self._family.slices(boundary, grids):
            beside = {name: torch.from_numpy(array).to(boundary.device) for name, array in arrays.items()}
            for layer in layers:
                self._aborted = aborted
                try:
                    rows = self.layers[layer](rows, beside)
                finally:
                    self._aborted = _never
                yield
            made.append(rows)
        return torch.cat(made)

    def _look(self, *_: object) -> None:
        if self._aborted():
            raise Unwanted


def whole(steps: Steps) -> Tensor:
    """What all `steps` make."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Tensor = end.value
            return made
