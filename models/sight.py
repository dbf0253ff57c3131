"""What a row of the decoder sees: an interval of positions, by the kind of layer and the blocks of the prompt.

A row sees those before it and itself; in a layer with a window the last ones of these alone. Rows of a block, such as
those of one image, may see each other both ways. So a prompt can only be run in pieces, or shared with another one, up
to a seam: a position where no row before it sees one behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

UNSEEN = np.float32(-1e9)  # added to a score, leaves nothing of it

Block = tuple[int, int]  # [begin, end) of a prompt's tokens


class Sight(NamedTuple):
    """What rows see in a layer: the last `window` positions, or all with 0; and what `blocks` do.

    "shut": nothing. "ahead": a row sees its block to the end. "whole": it sees all of its block, whatever the window.
    """

    window: int = 0
    blocks: Literal["shut", "ahead", "whole"] = "shut"

    def interval(self, blocks: Sequence[Block], start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first and the last position that each of the rows at `[start, end)` sees."""
        last = np.arange(start, end)
        first = np.maximum(last - self.window + 1, 0) if self.window else np.zeros_like(last)
        for begin, behind in () if self.blocks == "shut" else _about(blocks, start, end):
            inside = slice(max(begin - start, 0), max(behind - start, 0))
            last[inside] = behind - 1
            if self.blocks == "whole":
                first[inside] = np.minimum(first[inside], begin)
        return first, last

    def bias(self, blocks: Sequence[Block], start: int, end: int) -> NDArray[np.float32]:
        """What is added to the attention scores (1, 1, n, end) of rows at `[start, end)`: 0 for what they see."""
        first, last = (edge[:, None] for edge in self.interval(blocks, start, end))
        places = np.arange(end)
        return np.where((first <= places) & (places <= last), np.float32(0), UNSEEN)[None, None]

    def is_causal(self, blocks: Sequence[Block], start: int, end: int) -> bool:
        """Whether each of the rows at `[start, end)` sees all that stands before it and itself, and nothing else."""
        inside = self.blocks != "shut" and len(_about(blocks, start, end)) > 0
        return not inside and (self.window == 0 or self.window >= end)


CAUSAL = Sight()


def _about(blocks: Sequence[Block], start: int, end: int) -> Sequence[Block]:
    """Those of `blocks` that have a position in `[start, end)`."""
    first = bisect_right(blocks, start, key=lambda block: block[1])
    return blocks[first : bisect_left(blocks, end, lo=first, key=lambda block: block[0])]


def seam_before(blocks: Sequence[Block], position: int) -> int:
    """The last seam up to `position`."""
    return next((begin for begin, behind in blocks if begin < position < behind), position)


def piece_end(blocks: Sequence[Block], start: int, most: int) -> int:
    """Where a piece of a prompt ends that begins at `start`: at a seam, after `most` rows at most.

    A block that is longer goes as a whole, and so does what is left of one that is run again from its middle.
    """
    end = seam_before(blocks, start + most)
    return end if end > start else next(behind for begin, behind in blocks if begin <= start < behind)


def pieces(blocks: Sequence[Block], start: int, end: int, most: int) -> Iterator[Block]:
    """A prompt's tokens `[start, end)`, from a seam on, in pieces that end at seams, as `piece_end` has it."""
    while start < end:
        last = min(piece_end(blocks, start, most), end)
        yield start, last
        start = last


def shared_seam(blocks: Sequence[Block], others: Sequence[Block], count: int) -> int:
    """How many of the first `count` rows, whose tokens two prompts share, saw the same in both.

    Each has its own blocks. One that only one of them has, or that goes on behind what is shared, is not shared.
    """
    differing = set(blocks) ^ set(others)
    begins = [begin for begin, _ in differing if begin < count]
    begins += [begin for begin, behind in {*blocks, *others} if begin < count < behind]
    return min([count, *begins])
