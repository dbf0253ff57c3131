"""What a cut costs before the decoder: `python -m cutline.bench.cuts [--cards N]`.

For every cut and wire format, over evaluation requests in mode `cloud`: bytes up, how many answers have exactly the
unsplit target's tokens, and how many are right. A worker runs as a process of its own, without an emulated link.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import fmean

from rich.console import Console
from rich.progress import track
from rich.table import Table

from cutline.cli.processes import worker_process
from cutline.cli.setting import open_drafter, open_target
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import Request, requests
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Mode, Question
from cutline.models.wire import Wire

Plan = tuple[str, Wire]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=50, help="cards, six questions each")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    target = open_target(None)
    reference = Reference(target)
    asked = list(requests(Split.EVALUATION, args.cards, args.seed))
    truths = [reference.answer(one.image, one.question.text) for one in track(asked, "the target, unsplit")]
    plans = [("image", Wire.FLOAT32), *((cut, wire) for cut in target.manifest.line.image_cuts[1:] for wire in Wire)]
    with worker_process(TARGET) as address:
        answered = asyncio.run(ask(asked, plans, address))
    table = Table(title=f"{len(asked)} evaluation questions")
    for heading in ("cut", "wire", "bytes up", "the target's tokens", "right"):
        table.add_column(heading, justify="right")
    for (cut, wire), answers in answered.items():
        same = fmean(tuple(t.id for t in one.tokens) == truth for one, truth in zip(answers, truths, strict=True))
        right = fmean(one.text == request.question.answer for one, request in zip(answers, asked, strict=True))
        sent = fmean(one.bytes_up for one in answers)
        table.add_row(cut, "" if cut == "image" else wire, f"{sent:.0f}", f"{same:.1%}", f"{right:.1%}")
    Console().print(table)


async def ask(asked: list[Request], plans: list[Plan], worker: str) -> dict[Plan, list[Answer]]:
    """Every request under every plan."""
    answered: dict[Plan, list[Answer]] = {plan: [] for plan in plans}
    async with Agent(open_drafter(None), worker=worker, threads=1, target=open_target(None)) as agent:
        for request in track(asked, "every cut and format"):
            for cut, wire in plans:
                question = Question(
                    image=request.image, text=request.question.text, mode=Mode.CLOUD, cut=cut, wire=wire
                )
                answered[cut, wire].append(await agent.answer(question))
    return answered


if __name__ == "__main__":
    main()
