"""Whether the law holds: `python -m cutline.bench.law [--cards N]`.

Counts, over evaluation requests, how many answers of modes `cloud` and `draft` (at efforts 0, 0.5 and 1) have exactly
the tokens of the unsplit target, run by transformers' own `generate`; and how many have each other's tokens when
sampled at temperature 0.8 with one seed. A worker runs as a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

from rich.console import Console
from rich.progress import track

from cutline.cli.process.children import worker_process
from cutline.cli.setting import open_drafter
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import CardRequest, requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.result import Answer
from cutline.models.bundle import Bundle

WAYS = ((Mode.CLOUD, 1.0), (Mode.DRAFT, 1.0), (Mode.DRAFT, 0.5), (Mode.DRAFT, 0.0))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=50, help="cards, six questions each")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    asked = list(requests(Split.EVALUATION, args.cards, args.seed))
    with worker_process(TARGET) as address:
        greedy, sampled = asyncio.run(count(asked, address))
    console = Console()
    for mode, effort in WAYS:
        console.print(
            f"{mode}, effort {effort}: greedy {greedy[mode, effort]} of {len(asked)} identical to the unsplit target, "
            f"at temperature 0.8 {sampled[mode, effort]} identical to mode cloud",
            soft_wrap=True,
        )


async def count(
    asked: list[CardRequest], worker: str
) -> tuple[Counter[tuple[Mode, float]], Counter[tuple[Mode, float]]]:
    """Identical answers for each of `WAYS`, greedy and sampled."""
    reference = Reference(Bundle.open(TARGET))
    greedy: Counter[tuple[Mode, float]] = Counter()
    sampled: Counter[tuple[Mode, float]] = Counter()
    async with Agent(open_drafter(None), worker=worker, threads=1, settings=AgentSettings(fresh=True)) as agent:
        for seed, request in enumerate(track(asked, "asking")):
            truth = reference.answer(request.image, request.question.text)
            drawn: tuple[int, ...] = ()
            for mode, effort in WAYS:
                answer = await agent.answer(question(request, mode, effort, Sampling()))
                greedy[mode, effort] += ids(answer) == truth
                answer = await agent.answer(question(request, mode, effort, Sampling(temperature=0.8, seed=seed)))
                drawn = drawn or ids(answer)
                sampled[mode, effort] += ids(answer) == drawn
    return greedy, sampled


def question(request: CardRequest, mode: Mode, effort: float, sampling: Sampling) -> Request:
    """A request's question in one mode."""
    return Request.about(
        request.image, request.question.text, mode=mode, effort=effort, sampling=sampling, max_tokens=64
    )


def ids(answer: Answer) -> tuple[int, ...]:
    """An answer's token ids."""
    return tuple(token.id for token in answer.tokens)


if __name__ == "__main__":
    main()
