"""Images that a worker keeps from one session to the next: the rows that enter its decoder, under the images' digests.

Nobody finds what another tenant left: a key is a digest under a salt of the tenant's own, made anew in every process.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from torch import Tensor

from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.core.lru_cache import LruCache
from cutline.models.families import Grid


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An image that became `grid`: its `rows` (n, width) as they enter the decoder, on the worker's device."""

    grid: Grid
    rows: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image of a prompt, whose tokens stand from `first` to `last`; others may stand among them.

    Without a `key` nobody can tell which image it is. What is not `kept` comes with the session's boundary.
    """

    key: bytes | None
    grid: Grid
    first: int
    last: int
    kept: Kept | None = None


class ImageCache:
    """Keeps images in `room` bytes, those that were wanted last. Any thread may call."""

    def __init__(self, room: int, *, observer: Observer = NOBODY) -> None:
        self._room = room
        self._observer = observer
        self._secret = secrets.token_bytes(32)
        self._kept: LruCache[bytes, Kept] = LruCache(room)

    @property
    def keeps(self) -> bool:
        """Whether there is room for any image."""
        return self._room > 0

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._kept.size

    def key(self, tenant: str, digest: bytes) -> bytes:
        """Under which the image of this digest is kept for `tenant`, and for nobody else."""
        salt = hmac.digest(self._secret, tenant.encode(), "sha256")
        return hmac.digest(salt, digest, "sha256")

    def find(self, key: bytes) -> Kept | None:
        """The image under `key`, if it is still here; whoever has it may use it even if it goes meanwhile."""
        kept = self._kept.get(key)
        self._observer.recalled(found=kept is not None)
        return kept

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep an image, in the place of those that were wanted longest ago; one larger than all the room is not."""
        self._kept.put(key, kept, kept.rows.nbytes)
        self._observer.keeping(self._kept.size)
