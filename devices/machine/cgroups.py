"""Finds the control groups of this process, which limit its resources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, *, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """The folders, with their version, of the process's group and all its ancestors; the limits of each apply.

    Version 2 has one tree; of version 1 it is the tree of `controller`, such as `cpu`. `root` is the root of the file
    system.
    """
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from ((2, folder) for folder in _upwards(mount, group))
        elif controller in controllers.split(","):
            yield from ((1, folder) for folder in _upwards(mount / controllers, group))


def read(file: Path) -> str:
    """The text of a group's file; "" if it is missing, as the group then sets no limit."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    # A container may name a group that only its host can see; the walk still ends at the mount, the container's own.
    inside = PurePosixPath(group).relative_to("/")
    yield from (mount / folder for folder in (inside, *inside.parents))
