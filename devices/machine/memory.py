"""How much memory this process may still take: the machine's, within its control group's limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from cutline.devices.machine.cgroups import group_folders, read

_NONE = 1 << 60  # bytes: version 1 says that it has no limit with a number near the largest


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. `free` may be taken without swapping; `limit` is a control group's, and `swap` what there is of it."""

    total: int
    free: int
    limit: int | None
    swap: int


def measure_memory(*, root: Path = Path("/")) -> Memory:
    """Memory as it is at this moment. `root` is where the control groups are looked for."""
    machine, groups = psutil.virtual_memory(), list(_groups(root))
    return Memory(
        total=machine.total,
        free=max(0, min([machine.available, *(limit - held for limit, held in groups)])),
        limit=min((limit for limit, _ in groups), default=None),
        swap=psutil.swap_memory().total,
    )


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and bytes held, of each control group that has a limit."""
    for version, folder in group_folders("memory", root=root):
        names = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit, held = (read(folder / name).strip() for name in names[:2])
        if limit.isdigit() and held.isdigit() and int(limit) < _NONE:
            # What files were read stays in memory only as long as nobody needs it.
            stat = dict(line.split() for line in read(folder / "memory.stat").splitlines())
            yield int(limit), int(held) - int(stat.get(names[2], 0))
