"""A cache of the values that were used last, for any threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import cachetools

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Name, Value]):
    """The values that were used last, of `room` in all by the size that comes with each."""

    def __init__(self, room: int) -> None:
        self._held: cachetools.LRUCache[Name, tuple[Value, int]] = cachetools.LRUCache(room, lambda pair: pair[1])
        self._turn = threading.Lock()

    @property
    def size(self) -> int:
        """Of all values that are held."""
        return int(self._held.currsize)

    def get(self, key: Name) -> Value | None:
        """The value of `key`, if it is there."""
        with self._turn:
            pair = self._held.get(key)
        return None if pair is None else pair[0]

    def put(self, key: Name, value: Value, size: int = 1) -> None:
        """Hold `value`, unless it is larger than all the room."""
        with self._turn:
            self._held.pop(key, None)
            if size <= self._held.maxsize:
                self._held[key] = value, size

    def drop(self, unwanted: Callable[[Name], bool] = lambda key: True) -> None:
        """Forget the values of all `unwanted` keys; of every key, if nothing is said."""
        with self._turn:
            for key in list(filter(unwanted, self._held)):
                del self._held[key]
