"""The memory that decoding images may take: one budget for the whole process, whoever sends them.

    with DECODING.hold(read_header(file).memory):
        ...  # decode, and keep what is small

What a picture takes is known from its header: what would take too much is refused there, what fits waits its turn.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cutline.models.images import MAX_MEMORY

LARGE = 8 << 20  # bytes: worth to be given back at once
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt


class MemoryBudget:
    """So many bytes, of which each who decodes holds some for as long as it takes. For any threads."""

    def __init__(self, room: int) -> None:
        self.held = 0
        self._room = room
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are left, and hold them meanwhile. Who holds some must not ask for more.

        When they are let go nothing may refer to the picture any more: its memory then goes back to the system.
        """
        size = min(size, self._room)
        if size >= LARGE:
            _glibc()
        with self._turn, self._changed:  # one waits at a time, so that small ones do not starve a large one
            self._changed.wait_for(lambda: self.held + size <= self._room)
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
    """Return freed memory to the system. glibc keeps it for later otherwise; other allocators have no such call."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The allocator, told to map large blocks one by one: a thread's own heap does not shrink at its end."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return None
    for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(threshold, LARGE)
    return libc
