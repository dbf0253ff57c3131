"""The decoder's layers through torch.compile: the same pass in fewer, fused kernels, on a processor and a GPU alike.

Blocks of some layers are compiled, and as blocks differ in nothing but their weights, what is compiled for one serves
all. The number of rows is left open; one row alone is compiled anew. So there are two graphs, and both are made before
a worker listens. A block that a session joins in the middle runs as without this.

Attention is one opaque step to the compiler: it is ragged, and writes into slots. That is why there are no CUDA graphs
either: they replay the same shapes at the same addresses, and here both differ from pass to pass.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor

from cutline.cloud.model.attention import PASSING, Layout, Rotary
from cutline.cloud.model.state.slot_cache import SlotCache
from cutline.errors import InputError

log = logging.getLogger(__name__)

MOST_LAYERS = 10  # of a block: with more, starting takes longer; with one, calling costs what fusing gains
# To compile for: equal to no width of a model, which the compiler would take for the same number ever after.
WARM_ROWS = (1, 7)


def run_layers(
    layers: Sequence[nn.Module], hidden: Tensor, rotary: Rotary | None, layout: Layout, cache: SlotCache
) -> Tensor:
    """Rows `hidden` (1, n, width) after `layers`, one after another."""
    for layer in layers:
        hidden = layer(hidden, position_embeddings=rotary, layout=layout, slot_cache=cache)
    return hidden


class Compiled:
    """What `run_layers` does, by compiled code where it was made for."""

    def __init__(self, layers: Sequence[nn.Module], cache: SlotCache, *, ends: Sequence[int] = ()) -> None:
        """For spans of `layers`. Before each of `ends`, counted from the first of them, a block ends."""
        edges = [0, *ends, len(layers)]
        self.block = block_size(math.gcd(*(last - first for first, last in itertools.pairwise(edges))))
        for layer in layers:
            for module in layer.modules():
                # A number would be compiled in, and every block's code be its own.
                if isinstance(index := getattr(module, "layer_idx", None), int):
                    module.place = torch.tensor(index - cache.first)
        self._run = torch.compile(run_layers, dynamic=True)

    def __call__(
        self, layers: Sequence[nn.Module], hidden: Tensor, rotary: Rotary | None, layout: Layout, cache: SlotCache
    ) -> Tensor:
        """As `run_layers`."""
        if len(layers) != self.block or rotary is None:
            return run_layers(layers, hidden, rotary, layout, cache)
        # What is left of a longer one has strides that tell, and code would be made for them.
        cos, sin = (part.flatten().view(part.shape) for part in rotary)
        token = PASSING.set((layout, cache))
        try:
            made: Tensor = self._run(list(layers), hidden, (cos, sin), layout, cache)
        finally:
            PASSING.reset(token)
        return made

    def warm_up(self, run: Callable[[int], object]) -> None:
        """Compile, by having `run` make passes of so many rows. Raises InputError where torch cannot."""
        began = time.perf_counter()
        log.info("compiling the target's layers, %d at a time; this takes a minute or so", self.block)
        try:
            # A pool of processes for so few kernels takes longer to start than it saves.
            with inductor.patch(compile_threads=1):
                for rows in WARM_ROWS:
                    run(rows)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch cannot compile here ({reason}); install a C++ compiler such as g++, or leave out --compile"
            ) from None
        log.info("compiled in %.0f seconds", time.perf_counter() - began)


def block_size(layers: int) -> int:
    """Of how many layers a block is, so that blocks of one size make up all of them."""
    return max(size for size in range(1, MOST_LAYERS + 1) if layers % size == 0)


def pieces(layers: range, entries: Sequence[int], block: int, *, ends: Sequence[int] = ()) -> Iterator[range]:
    """The layers of a pass in pieces of `block` or fewer, at whose beginnings sessions join it: each of `entries`.

    Before each of `ends` a piece ends too, as far as it is within these layers.

    The last one is empty: behind all layers sessions may join, too.
    """
    within = (end for end in ends if end in layers)
    stops = sorted({layers.start, *entries, *within, layers.stop})
    for first, last in itertools.pairwise(stops):
        for at in range(first, last, block):
            yield range(at, min(at + block, last))
    yield range(layers.stop, layers.stop)
