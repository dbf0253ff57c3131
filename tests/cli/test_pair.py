from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cutline.demo.bundles import DRAFTER, TARGET

Run = Callable[..., Any]


def test_a_pair_that_runs(run: Run) -> None:
    ran = run("pair", "check", DRAFTER, TARGET)
    assert ran.code == 0
    assert "tokens: shared\ntemplate: shared\nimage processing: shared\n" in ran.out
    assert "reads its target's prompts" in ran.out
    told = json.loads(run("pair", "check", DRAFTER, TARGET, "--json").out)
    assert told["shared"] == {"tokens": True, "template": True, "images": True}
    assert (told["runs"], told["why"]) == (True, None)


def test_a_pair_that_cannot_run_ends_with_its_exit_code(run: Run) -> None:
    ran = run("pair", "check", TARGET, TARGET, "--json")
    assert ran.code == 5
    told = json.loads(ran.out)
    assert not told["runs"]
    assert ran.err == f"cutline: {told['why']}\n"
