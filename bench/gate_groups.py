"""What the gate keeps, group by group: `python -m cutline.bench.gate_groups [--questions N] [--json FILE]`.

Asks evaluation cards in every group that `cutline calibrate` makes, in modes cloud and auto, and counts the answers
that the gate kept, and those of them that are not the target's own. A group holds unless an exact binomial test at 95%
shows that more of its kept answers are wrong than was promised, or something was kept where nothing was promised.
Prints a table in Markdown; --json writes the same figures into a file. Ends with 1 where a group does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress
from scipy.stats import binomtest

from cutline.cli.calibration.inputs import demo_sources
from cutline.cli.calibration.samples import SYSTEMS, Conversation, conversations, exchanges
from cutline.cli.process.children import worker_process
from cutline.cli.setting import open_drafter, open_target
from cutline.core.agreement.measures import Wording
from cutline.core.request import Mode
from cutline.demo.cards import Split
from cutline.demo.questions import KINDS
from cutline.edge.agent import MAX_NOTICE, Agent, AgentSettings
from cutline.edge.generation.conditions import GROUPS, group_of
from cutline.edge.generation.result import Answer, Decision
from cutline.errors import PromptError
from cutline.models.bundle import Bundle

SURE = 0.95


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A group: of `asked` questions the gate kept `kept`, and `wrong` of those are not the target's answer.

    `promised` is the share that may be, None where the group is closed; `p` the chance of so many wrong ones or more if
    it were just that, None where there is nothing to test.
    """

    group: str
    asked: int
    kept: int
    wrong: int
    promised: float | None
    p: float | None

    @property
    def holds(self) -> bool:
        """Whether what was promised is not refuted."""
        return self.kept == 0 if self.p is None else self.p >= 1 - SURE


def row(group: str, answers: Sequence[tuple[Answer, Wording]]) -> Row:
    """The row of a group, from each question's answers in modes auto and cloud."""
    kept = [(ours, theirs) for ours, theirs in answers if ours.gate and ours.gate.decision is Decision.KEPT]
    wrong = sum(ours.wording != theirs for ours, theirs in kept)
    promised = next((ours.gate.promised for ours, _ in kept if ours.gate), None)
    p = None if promised is None else float(binomtest(wrong, len(kept), promised, alternative="greater").pvalue)
    return Row(group=group, asked=len(answers), kept=len(kept), wrong=wrong, promised=promised, p=p)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| group | asked | kept | of those not the target's | promised | holds |", "|---|---|---|---|---|---|"]
    for one in rows:
        kept = f"{one.kept / max(one.asked, 1):.1%}"
        wrong = "" if not one.kept else f"{one.wrong} ({one.wrong / one.kept:.1%})"
        promised = "nothing: closed" if one.promised is None else f"{one.promised:.1%}"
        holds = "yes" if one.holds else "**no**"
        lines.append(f"| {one.group} | {one.asked} | {kept} | {wrong} | {promised} | {holds} |")
    return "\n".join(lines)


async def measure(drafter: Bundle, worker: str, asked: Sequence[Conversation], progress: Progress) -> list[Row]:
    """The rows of all groups, by what a worker of the target says."""
    answers: dict[str, list[tuple[Answer, Wording]]] = {group: [] for group in GROUPS}
    async with Agent(drafter, worker=worker, threads=1, notice=MAX_NOTICE, settings=AgentSettings(fresh=True)) as agent:
        for conversation in progress.track(asked, description="asking"):
            try:
                async for question, theirs in exchanges(agent, conversation):
                    ours = await agent.answer(msgspec.structs.replace(question, mode=Mode.AUTO))
                    answers[group_of(question)].append((ours, theirs))
            except PromptError:  # it has become too long for the models: later questions of it are not counted
                continue
    return [row(group, some) for group, some in answers.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=400, help="in each group")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--bundle", type=Path, help="the drafter's, in place of the demo's")
    parser.add_argument("--target", type=Path, help="the target's, likewise")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    sources = list(demo_sources(-(-args.questions // len(KINDS)) * 2, Split.EVALUATION, seed=args.seed))
    asked = list(conversations(sources, GROUPS, count=args.questions, systems=SYSTEMS, seed=args.seed))
    console = Console(stderr=True)
    with (
        worker_process(open_target(args.target).path) as worker,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        rows = asyncio.run(measure(open_drafter(args.bundle), worker, asked, progress))
    print(table(rows))
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    sys.exit(not all(one.holds for one in rows))


if __name__ == "__main__":
    main()
