"""What a device keeps of conversations that ended, for those that begin alike: decoder states, and rows of images."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from cutline.core.lru_cache import LruCache
from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.families.family import Positions
from cutline.models.images import Pixels
from cutline.models.law.sampling import agreeing

# A state is as large as its conversation was long: a token of SmolVLM-256M takes 46 KB, a picture's 1100 tokens 51 MB,
# its whole context 377 MB. Two are a conversation that goes on, and one beside it.
KEPT = 2
ROWS_BYTES = 32 << 20  # a span: a picture of SmolVLM-256M has 2.5 MB of rows behind its tower

Rows = NDArray[np.float32]  # (n, width)
Key = (
    int | tuple[Hashable, int]
)  # what a place of a prompt stands for: a token, or an image's name and which of its rows


def keys_of(prompt: Sequence[int], image_token: int, images: Sequence[tuple[Hashable, int]]) -> list[Key]:
    """The keys of a prompt whose image tokens stand for `images`, each a name and how many tokens it has."""
    rows = [(name, row) for name, count in images for row in range(count)]
    assert len(rows) == sum(token == image_token for token in prompt)
    following = iter(rows)
    return [next(following) if token == image_token else token for token in prompt]


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """The rows of a prompt as `decoder` takes them: `image` gives those of each image, as many as `counts` says."""

    decoder: Decoder
    prompt: Sequence[int]
    image_token: int
    counts: Sequence[int]
    image: Callable[[int], Rows]

    def after(self, first: int) -> Rows:
        """Those (n, width) from a place of the prompt on; images that end before it are not asked for."""
        places = np.array(self.prompt) == self.image_token
        embedded, skipped = self.decoder.embed(self.prompt[first:]), int(places[:first].sum())
        found = [embedded[:0]]
        for index, count in enumerate(self.counts):
            if skipped < count:
                found.append(self.image(index)[skipped:])
            skipped = max(0, skipped - count)
        embedded[places[first:]] = np.concatenate(found)
        return embedded


class History:
    """A decoder's state, and a key for every token in it. Not for two threads at once.

    `made` (context, width) has the boundary row of each, where that is what the decoder ends in. It is of a
    conversation of `tenant`.
    """

    def __init__(self, decoder: Decoder, positions: Positions, tenant: str = "") -> None:
        self.tenant = tenant
        self.keys: list[Key] = []
        self.made = np.empty((decoder.spec.context if decoder.output == "boundary" else 0, decoder.width), np.float32)
        self._state = decoder.new_state(positions)

    def extend(self, rows: Rows, keys: Sequence[Key], *, last_only: bool = False) -> Rows:
        """Append tokens, a row and a key each; returns what comes out, as `DecoderState.extend` does."""
        first = self._state.position
        made = self._state.extend(rows, last_only=last_only)
        if len(self.made):
            self.made[first : self._state.position] = made
        self.keys += keys
        return made

    def rollback(self, position: int) -> None:
        """Forget every token from `position` on."""
        self._state.rollback(position)
        del self.keys[position:]

    def resume(self, position: int, positions: Positions) -> None:
        """Go on from the first `position` tokens, in a conversation whose tokens stand at `positions`."""
        self._state.resume(position, positions)
        del self.keys[position:]


class PrefixCache:
    """Histories of conversations that ended, KEPT of them: one that begins alike goes on from there. For any threads.

    What conversations of one tenant left is not there for another's.
    A history is never in two conversations, and comes here when nothing refers to its conversation any more: a thread
    may still draft in one that a caller has given up.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kept: list[History] = []  # the one that ended last at the end
        self._ended: SimpleQueue[History] = SimpleQueue()
        self._turn = threading.Lock()

    def begin(self, keys: Sequence[Key], positions: Positions, tenant: str = "") -> History:
        """A history of `tenant` with a beginning of `keys`, whose tokens stand at `positions`; perhaps an empty one.

        What is lost to it must not be more than it gains: a history of which less than half begins alike stays.
        """
        with self._turn:
            self._tidy()
            own = [one for one in self._kept if one.tenant == tenant]
            alike = [agreeing(one.keys, keys) for one in own]
            best = int(np.argmax(alike)) if alike else None
            if best is None or 2 * alike[best] < len(own[best].keys):
                return History(self._decoder, positions, tenant)
            history = own[best]
            self._kept.remove(history)
        history.resume(alike[best], positions)
        return history

    def keep_after(self, conversation: object, history: History) -> None:
        """Keep `history` once nothing refers to `conversation` any more."""
        weakref.finalize(conversation, self._end, history).atexit = False

    def clear(self) -> None:
        """Forget all that is kept."""
        with self._turn:
            self._tidy()
            self._kept.clear()

    def _end(self, history: History) -> None:
        # Python may call this in the middle of anything, also of what holds the turn: so it never waits.
        self._ended.put(history)
        if self._turn.acquire(blocking=False):
            try:
                self._tidy()
            finally:
                self._turn.release()

    def _tidy(self) -> None:
        while not self._ended.empty():
            history = self._ended.get()
            if history.keys:
                self._kept.append(history)
        del self._kept[:-KEPT]


class ImageRows:
    """The boundary rows of images behind a span; those of the last images are kept by name. For any threads."""

    def __init__(self, span: VisionSpan) -> None:
        self._span = span
        self._rows: LruCache[bytes, Rows] = LruCache(ROWS_BYTES)

    def of(self, pixels: Pixels, name: bytes | None) -> Rows:
        """The rows (n, width) of an image; without a name they are not kept."""
        rows = None if name is None else self._rows.get(name)
        if rows is None:
            rows = self._span(pixels.values, [pixels.grid])
            rows.setflags(write=False)  # conversations share them
            if name is not None:
                self._rows.put(name, rows, rows.nbytes)
        return rows

    def clear(self) -> None:
        """Forget all that is kept."""
        self._rows.drop()
