"""The control groups that this process is in: where the kernel keeps what it may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, *, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """The folders of the process's group and of every group around it (each of them binds), with their version.

    Version 2 has one tree for all; of version 1 the tree of `controller`, such as `cpu`. `root` is where `proc` and
    `sys` are looked for.
    """
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from ((2, folder) for folder in _upwards(mount, group))
        elif controller in controllers.split(","):
            yield from ((1, folder) for folder in _upwards(mount / controllers, group))


def read(file: Path) -> str:
    """What a file of a group says; nothing where there is no such file, as the group then sets no limit."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    # A container often names a group that only its host can see; the walk still ends at the mount, which is its own.
    inside = PurePosixPath(group).relative_to("/")
    yield from (mount / folder for folder in (inside, *inside.parents))
