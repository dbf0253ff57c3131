"""A process-wide budget of the memory for decoding images.

    with DECODING.hold(read_header(file).memory):
        ...  # decode, and keep only what is small

The memory of an image is known from its header. `read_header` refuses one that needs too much; the others wait here.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cutline.models.images import MAX_MEMORY

LARGE = 8 << 20  # bytes: from this size on memory is returned to the system at once
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt


class MemoryBudget:
    """A budget of `capacity` bytes, of which threads hold parts while they decode. For any threads."""

    def __init__(self, capacity: int) -> None:
        self.held = 0
        self._capacity = capacity
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and hold them within this context. A thread must not nest two of these.

        At the end no reference to the decoded image may be left, so that its memory can be returned to the system.
        """
        size = min(size, self._capacity)
        if size >= LARGE:
            _glibc()
        with self._turn, self._changed:  # one thread waits at a time, so that small requests do not starve a large one
            self._changed.wait_for(lambda: self.held + size <= self._capacity)
            self.held += size
        try:
            yield
        finally:
            if size >= LARGE:
                give_back()
            with self._changed:
                self.held -= size
                self._changed.notify()


DECODING = MemoryBudget(MAX_MEMORY)


def give_back() -> None:
    """Return freed memory to the system, which glibc does not do by itself. Does nothing with other allocators."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """glibc, set to map large blocks separately, as a thread's own heap does not shrink; None for another libc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return None
    for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(threshold, LARGE)
    return libc
