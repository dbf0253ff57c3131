"""Caches across conversations on a device: KV caches by common prefix, and rows of images."""

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
from cutline.models.families.positions import Positions
from cutline.models.images import Pixels
from cutline.models.law.sampling import agreeing
from cutline.models.sight import Block, shared_seam

# The size of a KV cache is that of its conversation: with SmolVLM-256M 46 KB a token, 51 MB for the 1100 tokens of an
# image, 377 MB for the whole context. Two are enough for a running conversation and one beside it.
MAX_HISTORIES = 2
ROWS_BYTES = 32 << 20  # for each span: with SmolVLM-256M an image has 2.5 MB of rows after the tower

Rows = NDArray[np.float32]  # (n, width)
Key = int | tuple[Hashable, int]  # identifies a row of a prompt: a token, or an image's name and the row's index in it


def keys_of(prompt: Sequence[int], image_token: int, images: Sequence[tuple[Hashable, int]]) -> list[Key]:
    """The keys of a prompt whose image tokens stand for `images`, given as names and numbers of tokens."""
    rows = [(name, row) for name, count in images for row in range(count)]
    assert len(rows) == sum(token == image_token for token in prompt)
    following = iter(rows)
    return [next(following) if token == image_token else token for token in prompt]


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """The rows of a prompt for `decoder`; `image` computes those of an image by index, as many as in `counts`."""

    decoder: Decoder
    prompt: Sequence[int]
    image_token: int
    counts: Sequence[int]
    image: Callable[[int], Rows]

    def after(self, first: int) -> Rows:
        """The rows (n, width) from index `first` of the prompt on; images that end before it are not computed."""
        is_image = np.array(self.prompt) == self.image_token
        embedded, skipped = self.decoder.embed(self.prompt[first:]), int(is_image[:first].sum())
        found = list[Rows]()
        for index, count in enumerate(self.counts):
            if skipped < count:
                found.append(self.image(index)[skipped:])
            skipped = max(0, skipped - count)
        if found:  # what layers are given of a token stands behind
            made = np.concatenate(found)
            embedded[is_image[first:], : made.shape[1]] = made
        return embedded


class History:
    """A decoder's state, with a key for every token in it, of a conversation of `tenant`. For one thread at a time.

    `made` (context, width) has the boundary row of each token, if the decoder's output is a boundary.
    """

    def __init__(self, decoder: Decoder, positions: Positions, tenant: str = "") -> None:
        self.tenant = tenant
        self.keys: list[Key] = []
        self.made = np.empty((decoder.spec.context if decoder.output == "boundary" else 0, decoder.width), np.float32)
        self._state = decoder.new_state(positions)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those of the conversation's prompt, whose rows may see each other both ways."""
        return self._state.positions.blocks

    def shared(self, keys: Sequence[Key], positions: Positions) -> int:
        """How many tokens, from the first, have the rows that a conversation with these has, too."""
        alike = self._state.positions.agreeing(positions, agreeing(self.keys, keys))
        return shared_seam(self.blocks, positions.blocks, alike)

    def extend(self, rows: Rows, keys: Sequence[Key], *, last_only: bool = False) -> Rows:
        """Append tokens, given by rows and keys; returns the output of `DecoderState.extend`."""
        first = self._state.position
        made = self._state.extend(rows, last_only=last_only)
        if len(self.made):
            self.made[first : self._state.position] = made
        self.keys += keys
        return made

    def rollback(self, position: int) -> None:
        """Drop every token from `position` on."""
        self._state.rollback(position)
        del self.keys[position:]

    def resume(self, position: int, positions: Positions) -> None:
        """Drop every token from `position` on, for a conversation with `positions`, which are equal before it."""
        self._state.resume(position, positions)
        del self.keys[position:]


class PrefixCache:
    """The latest MAX_HISTORIES histories of ended conversations, to be reused by common prefix. For any threads.

    A history is reused by conversations of its own tenant only, and by one at a time. It enters the cache when nothing
    refers to its conversation any more, as a thread may still draft in one that its caller has abandoned.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cached: list[History] = []  # in the order of ending
        self._ended: SimpleQueue[History] = SimpleQueue()
        self._lock = threading.Lock()

    def begin(self, keys: Sequence[Key], positions: Positions, tenant: str = "") -> History:
        """A history of `tenant` for a conversation with these `keys` and `positions`, reused if possible.

        A history is only reused if the common prefix is at least half of it; else more would be lost than gained.
        """
        with self._lock:
            self._collect()
            own = [history for history in self._cached if history.tenant == tenant]
            common = [history.shared(keys, positions) for history in own]
            best = int(np.argmax(common)) if common else None
            if best is None or 2 * common[best] < len(own[best].keys):
                return History(self._decoder, positions, tenant)
            history = own[best]
            self._cached.remove(history)
        history.resume(common[best], positions)
        return history

    def keep_after(self, conversation: object, history: History) -> None:
        """Cache `history` once nothing refers to `conversation` any more."""
        weakref.finalize(conversation, self._end, history).atexit = False

    def clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._collect()
            self._cached.clear()

    def _end(self, history: History) -> None:
        # The garbage collector may call this at any point, also while this thread holds the lock, so it must not wait.
        self._ended.put(history)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while not self._ended.empty():
            history = self._ended.get()
            if history.keys:
                self._cached.append(history)
        del self._cached[:-MAX_HISTORIES]


class ImageRows:
    """The boundary rows of images after a span, with a cache of the latest images by name. For any threads."""

    def __init__(self, span: VisionSpan) -> None:
        self._span = span
        self._rows: LruCache[bytes, Rows] = LruCache(ROWS_BYTES)

    def of(self, pixels: Pixels, name: bytes | None) -> Rows:
        """The rows (n, width) of an image; without a name they are not cached."""
        rows = None if name is None else self._rows.get(name)
        if rows is None:
            rows = self._span(pixels.values, [pixels.grid])
            rows.setflags(write=False)  # conversations share them
            if name is not None:
                self._rows.put(name, rows, rows.nbytes)
        return rows

    def clear(self) -> None:
        """Empty the cache."""
        self._rows.drop()
