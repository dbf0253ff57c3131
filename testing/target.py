"""A model of ten lines for the worker's engine: slots keep what was written, and tokens follow from that alone.

So what an earlier session left in a slot, a draft that was wrong, or a slot that was taken for another would all change
a token. A row is computed of all tokens up to its own, and the next token of the row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.vision import Steps

VOCABULARY = 64
STOP = 0
POISON = 63  # a token that breaks the pass it is in; the model never says it
HOLLOW = 64  # a token of a prompt, after which there are no logits to choose from
CONTEXT = 80


def rows_of(tokens: Sequence[int], start: int = 0) -> NDArray[np.float32]:
    """The rows of `tokens` from `start` on, (n, 1)."""
    made = [zlib.crc32(bytes(tokens[: end + 1])) % (1 << 20) for end in range(start, len(tokens))]
    return np.array(made, np.float32).reshape(-1, 1)


def next_token(row: float) -> int:
    """The token after the one of this row."""
    return int(row) % (VOCABULARY - 1)


def plain_answer(prompt: Sequence[int], max_tokens: int, *, context: int = CONTEXT) -> list[int]:
    """The model's whole answer to `prompt`, its stop token included."""
    whole = list(prompt)
    while len(whole) < min(len(prompt) + max_tokens, context):
        whole.append(next_token(rows_of(whole, len(whole) - 1)[0, 0]))
        if whole[-1] == STOP:
            break
    return whole[len(prompt) :]


class ScriptedTarget:
    """As much of `model_runner.Target` as an engine asks for; one that does not choose passes its rows on."""

    decodes = True
    most_drafted: int | None = None
    passes_sides = False

    def __init__(self, slots: int, *, chooses: bool = True, context: int = CONTEXT) -> None:
        self.slots = slots
        self.context = context
        self.chooses = chooses
        self.width = 4
        self.together = 0  # sessions in the largest pass
        self.lone_only = False  # fail passes of several sessions
        self.encoded: list[int] = []  # tiles of each image
        self.on_step: Callable[[], object] = lambda: None  # of an image
        self._cache = [[POISON] * context for _ in range(slots)]

    def steps(self, tiles: Any, cut: str, grids: Any, *, aborted: Callable[[], bool]) -> Steps:
        """An image, a step a tile."""
        self.aborted = aborted
        self.encoded.append(len(tiles))
        if len(tiles) == 0:
            raise RuntimeError("no tiles")
        for _ in range(len(tiles)):
            self.on_step()
            yield
        return torch.zeros(1, self.width).expand(len(tiles), self.width)

    def kept(self, slot: int, count: int) -> int:
        """All: what is kept of tokens rewinds."""
        del slot
        return count

    def resume(self, slot: int, source: int, count: int) -> None:
        """Begin a slot with the first `count` tokens of another."""
        self._cache[slot] = self._cache[source][:count] + [POISON] * (self.context - count)

    def run(self, batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        """Logits of the rows that are wanted of each session, or rows."""
        assert len({rows.session.slot for rows in batch}) == len(batch) == len(images)
        self.together = max(self.together, len(batch))
        if (self.chooses and any(POISON in rows.tokens for rows in batch)) or (self.lone_only and len(batch) > 1):
            raise RuntimeError("a bad pass")
        return [self._made(rows) for rows in batch]

    def _made(self, rows: SessionRows) -> Tensor:
        if rows.boundary is None:
            cache, end = self._cache[rows.session.slot], rows.start + len(rows.tokens)
            cache[rows.start : end] = rows.tokens
            made = rows_of(cache[:end], rows.start)
        else:
            made = rows.boundary
        if not self.chooses:
            return torch.from_numpy(made)
        chosen = [next_token(row) for row in made[len(made) - rows.wanted :, 0]]
        logits = torch.nn.functional.one_hot(torch.tensor(chosen, dtype=torch.long), VOCABULARY).float()
        return logits[:, :0] if HOLLOW in rows.tokens else logits
