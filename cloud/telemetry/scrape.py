"""Reads a worker's metrics back, and computes figures from one or two readings. Needs no torch."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cutline.errors import WorkerFailed


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a worker for operators. Rates cover the time since an earlier reading, else since the worker's start.

    A mean or share is None if there is nothing to divide by.
    """

    sessions_open: int
    slots: int
    slots_in_use: int
    passes: int
    tokens: dict[str, int]  # by source
    ended: dict[str, int]  # sessions by status
    bytes_up: int
    bytes_down: int
    queue_seconds: float | None
    pass_seconds: float | None
    rows_a_pass: float | None
    acceptance: float | None
    tokens_a_second: float | None = None
    bytes_up_a_second: float | None = None
    bytes_down_a_second: float | None = None


Counts = dict[tuple[str, str], float]  # by name and label


def read_counts(text: str) -> Counts:
    """The samples in `text`, Prometheus' format. Raises WorkerFailed if it is not a worker's."""
    try:
        counts = {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except ValueError:
        counts = {}
    if ("cutline_slots", "") not in counts:
        raise WorkerFailed("what answers there shows no metrics of a worker; give the address of `--metrics`")
    return counts


def figures(counts: Counts, before: Counts | None = None, *, seconds: float | None = None) -> Figures:
    """The figures of the `seconds` between the readings `before` and `counts`, or since the worker's start."""
    past = before or {}
    if any(counts.get(name, 0) < value for name, value in past.items() if name[0].endswith(("_total", "_count"))):
        past = {}  # the worker was restarted

    def new(name: str, label: str = "") -> float:
        return counts.get((name, label), 0.0) - past.get((name, label), 0.0)

    def mean(name: str) -> float | None:
        return _share(new(f"{name}_sum"), new(f"{name}_count"))

    def labelled(name: str) -> dict[str, int]:
        return {label: int(value) for (known, label), value in sorted(counts.items()) if known == name}

    def rate(name: str, *labels: str) -> float | None:
        return None if not seconds or not past else sum(new(name, label) for label in labels) / seconds

    def now(name: str, label: str = "") -> int:
        return int(counts.get((name, label), 0))

    return Figures(
        sessions_open=now("cutline_sessions_open"),
        slots=now("cutline_slots"),
        slots_in_use=now("cutline_slots_in_use"),
        passes=now("cutline_pass_seconds_count"),
        tokens=labelled("cutline_tokens_total"),
        ended=labelled("cutline_sessions_ended_total"),
        bytes_up=now("cutline_bytes_total", "up"),
        bytes_down=now("cutline_bytes_total", "down"),
        queue_seconds=mean("cutline_queue_seconds"),
        pass_seconds=mean("cutline_pass_seconds"),
        rows_a_pass=mean("cutline_pass_rows"),
        acceptance=_share(new("cutline_accepted_total"), new("cutline_drafted_total")),
        tokens_a_second=rate("cutline_tokens_total", "draft", "cloud"),
        bytes_up_a_second=rate("cutline_bytes_total", "up"),
        bytes_down_a_second=rate("cutline_bytes_total", "down"),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
