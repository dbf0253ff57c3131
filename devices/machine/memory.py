"""Measures the memory that this process may still use, by the machine and by control group limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from cutline.devices.machine.cgroups import group_folders, read

_UNLIMITED = 1 << 60  # bytes: cgroup version 1 has a number above this for no limit


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes. `free` can be used without swapping; `limit` is a control group's, `swap` the size of swap."""

    total: int
    free: int
    limit: int | None
    swap: int


def measure_memory(*, root: Path = Path("/")) -> Memory:
    """The current memory. `root` is the root of the file system with the control groups."""
    machine, groups = psutil.virtual_memory(), list(_groups(root))
    return Memory(
        total=machine.total,
        free=max(0, min([machine.available, *(limit - held for limit, held in groups)])),
        limit=min((limit for limit, _ in groups), default=None),
        swap=psutil.swap_memory().total,
    )


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and used bytes of each control group with a limit."""
    for version, folder in group_folders("memory", root=root):
        names = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit, held = (read(folder / name).strip() for name in names[:2])
        if limit.isdigit() and held.isdigit() and int(limit) < _UNLIMITED:
            # Cached files do not count, as the kernel evicts them on demand.
            stat = dict(line.split() for line in read(folder / "memory.stat").splitlines())
            yield int(limit), int(held) - int(stat.get(names[2], 0))
