"""Counts the cores that this process may use, by CPU affinity and control group quota.

`os.cpu_count()` counts the machine's. In a container with a quota of two cores on a 64-core host that is 32 times too
many, and so many threads slow a model down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from cutline.devices.machine.cgroups import group_folders, read


def usable_cores(*, root: Path = Path("/")) -> int:
    """Cores to plan threads for, at least 1: the smaller of the CPU affinity and the control group's quota.

    A quota of 1.5 cores counts as 2. Without either, as on systems other than Linux, it is the machine's cores. `root`
    is the root of the file system.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's control group and its ancestors."""
    for version, folder in group_folders("cpu", root=root):
        if version == 2:
            yield from _quota(read(folder / "cpu.max").split())
        else:
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
            yield from _quota([*quota.split(), *period.split()])


def _quota(words: list[str]) -> Iterator[float]:
    """The quota in cores: 1.5 for `["150000", "100000"]`, none for `max`, -1 or a missing file."""
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])
