from __future__ import annotations

from pathlib import Path

import psutil

from cutline.devices.machine.memory import measure_memory


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    memory = measure_memory(root=tmp_path)
    assert memory.limit is None
    assert memory.total == psutil.virtual_memory().total
    assert 0 < memory.free <= memory.total


def test_a_containers_limit_counts_without_the_files_it_has_read(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/box"
    files = {
        "proc/self/cgroup": "0::/box",
        f"{group}/memory.max": "50000000",
        f"{group}/memory.current": "30000000",
        f"{group}/memory.stat": "anon 19000000\ninactive_file 11000000",
    }
    memory = measure_memory(root=tree(tmp_path, files))
    assert (memory.limit, memory.free) == (50_000_000, 31_000_000)


def test_the_tightest_of_the_groups_binds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner",
        "sys/fs/cgroup/outer/inner/memory.max": "max",
        "sys/fs/cgroup/outer/inner/memory.current": "1",
        "sys/fs/cgroup/outer/memory.max": "1000",
        "sys/fs/cgroup/outer/memory.current": "400",
    }
    memory = measure_memory(root=tree(tmp_path, files))
    assert (memory.limit, memory.free) == (1000, 600)


def test_version_1_and_its_way_to_say_none(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "4:memory:/box",
        f"{group}/memory.limit_in_bytes": "9223372036854771712",
        f"{group}/memory.usage_in_bytes": "400",
        f"{group}/box/memory.limit_in_bytes": "2000",
        f"{group}/box/memory.usage_in_bytes": "3000",
        f"{group}/box/memory.stat": "total_inactive_file 500",
    }
    memory = measure_memory(root=tree(tmp_path, files))
    assert (memory.limit, memory.free) == (2000, 0)
