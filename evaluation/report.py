"""What an evaluation says, as rows of a table, and as a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cutline.core.request import Mode
from cutline.evaluation.figures import GroupFigures, Interval, ModeFigures, drop
from cutline.evaluation.page import render_page
from cutline.evaluation.scores import CIDER


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of some `questions` by a `score`, `skipped` of which could not be asked.

    With figures `against` other questions there is by how much each mode's score `drops` to those.
    """

    questions: int
    skipped: int
    score: str
    limit_ms: float | None
    modes: dict[Mode, ModeFigures]
    against: dict[Mode, ModeFigures] = {}
    drops: dict[Mode, Interval] = {}


Row = tuple[str, list[str]]
_Shown = Callable[[ModeFigures], str]


def rows_of(found: Evaluation) -> list[Row]:
    """What people are shown of every mode, in this order; nothing of what nobody knows."""
    written = _Written(found.score)
    limit = "" if found.limit_ms is None else f"{found.limit_ms:g}"
    shown: dict[str, _Shown] = {
        f"score: {found.score}": lambda one: written.value(one.score),
        "95% interval": lambda one: written.span(one.score),
        "less cloud's": lambda one: written.signed(one.to_cloud),
        "= cloud": lambda one: _share(one.same),
        "kept = cloud": lambda one: _share(one.kept_same),
        "latency p50": lambda one: f"{one.p50_ms:.0f} ms",
        "latency p95": lambda one: f"{one.p95_ms:.0f} ms",
        "first token p50": lambda one: f"{one.ttft_p50_ms:.0f} ms",
        "first token p95": lambda one: f"{one.ttft_p95_ms:.0f} ms",
        f"within {limit} ms": lambda one: _share(one.within),
        "bytes up": lambda one: f"{one.bytes_up:.0f}",
        "bytes down": lambda one: f"{one.bytes_down:.0f}",
        "round trips": lambda one: f"{one.rounds:.2f}",
        "tokens": lambda one: f"{one.tokens:.1f}",
        "joules": lambda one: "" if one.joules is None else f"{one.joules:.2f}",
        "asked the worker": lambda one: _share(one.asked),
        "calibration error": lambda one: "" if one.calibration_error is None else f"{one.calibration_error:.3f}",
    }
    made = [(name, [show(one) for one in found.modes.values()]) for name, show in shown.items()]
    return [(name, cells) for name, cells in (*made, *_drops(found)) if any(cells)]


def group_rows(found: Evaluation) -> list[Row]:
    """The score of every group, with its interval."""
    written = _Written(found.score)

    def shown(group: GroupFigures | None) -> str:
        return "" if group is None else f"{written.value(group.score)} ({written.span(group.score)}; {group.n})"

    names = sorted({name for one in found.modes.values() for name in one.groups})
    return [(name, [shown(one.groups.get(name)) for one in found.modes.values()]) for name in names]


def render(found: Evaluation, *, title: str) -> str:
    """The page of an evaluation under this `title`."""
    from cutline.evaluation import plots

    drawn = [plots.right(found.modes, found.score), plots.cost(found.modes), plots.reliability(found.modes)]
    return render_page(
        "cutline.evaluation",
        "report.html",
        title=title,
        found=found,
        headings=list(found.modes),
        rows=rows_of(found),
        groups=group_rows(found),
        plots=[plot for plot in drawn if plot is not None],
    )


def _drops(found: Evaluation) -> Sequence[Row]:
    if not found.drops:
        return []
    written = _Written(found.score)
    return [("drop to the others", [written.signed(found.drops.get(mode)) for mode in found.modes])]


@dataclass(frozen=True, slots=True)
class _Written:
    """How figures of a score are written: as shares, but for one that goes beyond 1."""

    score: str

    @property
    def form(self) -> str:
        return ".2f" if self.score == CIDER else ".1%"

    def value(self, of: Interval | None) -> str:
        return "" if of is None else f"{of.value:{self.form}}"

    def span(self, of: Interval | None) -> str:
        return "" if of is None else f"{of.low:{self.form}} to {of.high:{self.form}}"

    def signed(self, of: Interval | None) -> str:
        form = f"+{self.form}"
        return "" if of is None else f"{of.value:{form}} ({of.low:{form}} to {of.high:{form}})"


def _share(of: float | None) -> str:
    return "" if of is None else f"{of:.1%}"


def drops_of(first: Mapping[Mode, ModeFigures], other: Mapping[Mode, ModeFigures]) -> dict[Mode, Interval]:
    """By how much each mode's score falls from the first questions to the others."""
    both = ((mode, drop(figures, other[mode])) for mode, figures in first.items() if mode in other)
    return {mode: fallen for mode, fallen in both if fallen is not None}
