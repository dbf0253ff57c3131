from __future__ import annotations

import os
from pathlib import Path

import pytest

from cutline.devices.machine.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)]
)
def test_version_2_quota_is_rounded_up(tmp_path: Path, quota: str, cores: int) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/app", "sys/fs/cgroup/app/cpu.max": quota})
    assert usable_cores(root=root) == cores


def test_the_tightest_group_around_the_process_binds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/app",
        "sys/fs/cgroup/pod/app/cpu.max": "600000 100000",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
    }
    assert usable_cores(root=write(tmp_path, files)) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("400000", 4)])
def test_version_1_quota_seen_from_inside_a_container(tmp_path: Path, quota: str, cores: int) -> None:
    mount = "sys/fs/cgroup/cpu,cpuacct"
    files = {
        "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/",
        f"{mount}/cpu.cfs_quota_us": quota,
        f"{mount}/cpu.cfs_period_us": "100000",
    }
    assert usable_cores(root=write(tmp_path, files)) == cores


def test_affinity_binds_below_the_quota(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1600000 100000"})
    assert usable_cores(root=root) == 8


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(root=tmp_path) == 8


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_without_affinity_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, cores: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores(root=tmp_path) == cores


def test_this_machine_has_a_core() -> None:
    assert usable_cores() >= 1
