"""How a plan looks: as one JSON object, or as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cutline.cli.terminal.tables import show_table
from cutline.partitioner.plan import PARTS, Conditions, Plan
from cutline.partitioner.search import Search
from cutline.partitioner.setting import Asked


class QuestionSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The question that was planned for."""

    image_bytes: int
    prompt_tokens: int
    answer_tokens: int


class PlanFound(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    `runners_up` are the best of the other modes, `front` the plans that no other beats in everything; `plans` are all,
    within the limits or not, if they were asked for.
    """

    plan: Plan
    why: str
    notes: tuple[str, ...]
    runners_up: tuple[Plan, ...]
    front: tuple[Plan, ...]
    asked: QuestionSizes
    conditions: Conditions
    considered: int
    within_limits: int
    plans: tuple[Plan, ...] | None

    @classmethod
    def of(cls, found: Search, asked: Asked, *, why: str, notes: Iterable[str], every: bool) -> PlanFound:
        """What to show of a search that has found a plan."""
        first: dict[str, Plan] = {}  # of each mode, best first
        for ranked in found.ranked():
            first.setdefault(ranked.mode, ranked)
        best, *others = first.values()
        return cls(
            plan=best,
            why=why,
            notes=tuple(notes),
            runners_up=tuple(others),
            front=tuple(found[index] for index in found.front()),
            asked=QuestionSizes(
                image_bytes=asked.image_bytes, prompt_tokens=asked.prompt_tokens, answer_tokens=asked.answer_tokens
            ),
            conditions=found.conditions,
            considered=len(found),
            within_limits=int(found.allowed.sum()),
            plans=tuple(found[index] for index in range(len(found))) if every else None,
        )


class PlanRefused(msgspec.Struct, frozen=True, kw_only=True):
    """That no plan keeps to the limits, and why; `plan` is null, by which it is told from Planned."""

    plan: None = None
    why: str
    conditions: Conditions
    considered: int
    within_limits: int = 0


def show_refusal(found: Search, reason: str) -> None:
    """Print it as one JSON object."""
    refused = PlanRefused(why=reason, conditions=found.conditions, considered=len(found))
    sys.stdout.buffer.write(msgspec.json.encode(refused) + b"\n")


def show(planned: PlanFound, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(planned) + b"\n")
        return
    console = Console(highlight=False)
    asked = planned.asked
    console.print(
        f"[dim]an image of {asked.image_bytes} B, {asked.prompt_tokens} tokens of prompt and {asked.answer_tokens} of "
        f"answer; {planned.within_limits} of {planned.considered} plans keep to the limits[/dim]",
        soft_wrap=True,
    )
    if planned.plans is not None:
        show_table(console, _parts(planned.plans))
    show_table(console, _costs([planned.plan, *planned.runners_up]))
    console.print(planned.why, soft_wrap=True)
    for note in planned.notes:
        console.print(f"[dim]{note}[/dim]", soft_wrap=True)


def _costs(plans: Sequence[Plan]) -> Table:
    table = _table("plan", "ms", "first", "bytes up", "cloud ms", "J", "MB", "= target", "leak")
    for index, plan in enumerate(plans):
        table.add_row(
            str(plan),
            f"{plan.latency_ms:.1f}",
            f"{plan.ttft_ms:.1f}",
            f"{plan.bytes_up:.0f}",
            f"{plan.cloud_ms:.2f}",
            "" if plan.energy_j is None else f"{plan.energy_j:.3g}",
            f"{plan.memory_bytes / 1e6:.0f}",
            "exact" if plan.exact else "unknown" if plan.agreement is None else f"{plan.agreement:.1%}",
            "unknown" if plan.leak is None else f"{plan.leak:.0%}",
            style="bold" if index == 0 else None,
        )
    return table


def _parts(plans: Sequence[Plan]) -> Table:
    table = _table("plan, all in ms", "all", *(part.replace(" ", "\n") for part in PARTS))
    for plan in plans:
        table.add_row(str(plan), f"{plan.latency_ms:.1f}", *(f"{plan.parts_ms[part]:.1f}" for part in PARTS))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
