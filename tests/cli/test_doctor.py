"""`cutline doctor` on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_with_a_worker_that_serves_the_right_model(run: Run, worker: str) -> None:
    ran = run("doctor", "--worker", worker, "--json")
    said = json.loads(ran.out)
    found = {finding["check"]: finding for finding in said["findings"]}
    assert {"board", "python", "providers", "memory", "disk", "bundle", "cuts", "link", "worker"} <= found.keys()
    assert all(found[check]["level"] == "ok" for check in ("bundle", "target", "link", "worker", "memory"))
    assert all((finding["level"] == "ok") is (finding["do"] is None) for finding in said["findings"])
    assert said["facts"]["worker"]["uplink_mbps"] > 0
    # This machine may well be throttled or short of something; the code says so either way.
    assert ran.code == (0 if said["well"] else 8)


def test_problems_end_with_a_code_of_their_own(run: Run, bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("{}")
    ran = run("doctor", "--bundle", bundle, "--worker", "127.0.0.1:1")
    assert ran.code == 8
    assert "tokenizer.json" in ran.out
    assert "no worker answers at 127.0.0.1:1" in ran.out
    assert ran.out.rstrip().splitlines()[-1].endswith(("problem", "problems"))


def test_an_address_that_is_none(run: Run) -> None:
    assert "HOST:PORT" in run("doctor", "--worker", "nowhere").failed(2)
