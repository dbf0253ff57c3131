"""Alert rules: each reads figures that there are, and says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cutline.cloud.telemetry.metrics import WorkerMetrics
from cutline.edge.api.metrics import AgentMetrics

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules.yaml"
PROMTOOL = shutil.which("promtool")
SUFFIXES = {
    "info": ("_info",),
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exported(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The names of all samples, and the labels of each family."""
    labels = {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    found = dict[str, set[str]]()
    for family in registry.collect():
        for suffix in SUFFIXES[family.type]:
            name = family.name + suffix
            found[name] = set() if name.startswith("process_") else labels[name]  # the library's own has none to tell
    return found


@pytest.fixture(scope="module")
def figures() -> dict[str, set[str]]:
    worker, agent = WorkerMetrics(), AgentMetrics()
    worker.beyond(ready=True, seconds=0.0)  # which a worker with a next one shows
    return exported(worker.registry) | exported(agent.registry)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_reads_what_is_exported_and_says_what_to_do(rule: dict[str, Any], figures: dict[str, set[str]]) -> None:
    read = set(re.findall(r"\bcutline_[a-z_]+", rule["expr"]))
    assert read <= set(figures)
    assert read or rule["expr"].startswith("up{")
    for name, selector in re.findall(r"(cutline_[a-z_]+)\{([^}]*)\}", rule["expr"]):
        assert set(re.findall(r"(\w+)=", selector)) <= figures[name]
    assert {"summary", "what"} <= set(rule["annotations"])
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert re.fullmatch(r"\d+[sm]", rule["for"])


def test_names_are_told_once() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(PROMTOOL is None, reason="Prometheus is not installed")
def test_prometheus_takes_them() -> None:
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
