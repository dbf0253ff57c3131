"""A thread-safe cache that evicts the least recently used values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import cachetools

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Maps keys to values. The sizes given with the values add up to `capacity` at most."""

    def __init__(self, capacity: int) -> None:
        self._entries: cachetools.LRUCache[Key, tuple[Value, int]] = cachetools.LRUCache(capacity, lambda pair: pair[1])
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The sizes of all cached values, added up."""
        return int(self._entries.currsize)

    def get(self, key: Key) -> Value | None:
        """The value of `key`, or None if it is not cached."""
        with self._lock:
            pair = self._entries.get(key)
        return None if pair is None else pair[0]

    def put(self, key: Key, value: Value, size: int = 1) -> None:
        """Cache `value`, unless it is larger than the capacity."""
        with self._lock:
            self._entries.pop(key, None)
            if size <= self._entries.maxsize:
                self._entries[key] = value, size

    def drop(self, unwanted: Callable[[Key], bool] = lambda key: True) -> None:
        """Remove the values of all `unwanted` keys; by default of every key."""
        with self._lock:
            for key in list(filter(unwanted, self._entries)):
                del self._entries[key]
