"""What of a worker's time is not the model's: `python -m cutline.bench.worker_around [--rounds 5]`.

16 sessions over gRPC, of the demo's target (each brings an image) and of one of SmolVLM-256M's shape (seeded random
weights, text alone). The worker is a process of its own on one core, and whoever asks has the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from cutline.bench.slow import pinned
from cutline.bench.worker_load import SESSIONS, unexported
from cutline.bench.worker_process import WorkerProcess
from cutline.core.conversation import question
from cutline.core.sampling import Sampling
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Open, image_chunks

ANSWER = 32  # tokens
PROMPT = 32  # tokens, of one without an image
TURNS = 2  # questions of each agent, one after another
CONTEXT = 256
SECONDS = 300  # that a session may take

Asked = tuple[Open, bytes | None]


@dataclass(frozen=True, slots=True)
class Shares:
    """Of a round's time, what no pass ran in; of the worker's processor time, what its engine's thread did not take."""

    idle: float
    beside: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    asyncio.run(around_the_model(args.rounds, Console(soft_wrap=True)))


async def around_the_model(rounds: int, console: Console) -> None:
    """Medians of so many `rounds`, after one that warms up."""
    with tempfile.TemporaryDirectory() as place:
        shaped = unexported(Path(place))
        targets: dict[str, tuple[Bundle, Callable[[Bundle, int], Sequence[Asked]]]] = {
            "the demo's target": (Bundle.open(TARGET), _pictured),
            "SmolVLM-256M's shape": (shaped, _spoken),
        }
        for name, (bundle, asking) in targets.items():
            async with _alone(bundle) as worker, WorkerClient(worker.address) as client:
                seen = [await _round(worker, client, asking(bundle, seed)) for seed in range(rounds + 1)][1:]
            idle, beside = (statistics.median(getattr(one, share) for one in seen) for share in ("idle", "beside"))
            console.print(
                f"over gRPC, {SESSIONS} sessions, {name}: no pass runs in {idle:.1%} of the time; "
                f"{beside:.1%} of the worker's processor time is not its engine's"
            )


@asynccontextmanager
async def _alone(bundle: Bundle) -> AsyncIterator[WorkerProcess]:
    """A worker on the last core; this process keeps to the others, if there are any."""
    *others, last = sorted(before := os.sched_getaffinity(0))
    options = ("--max-sessions", str(SESSIONS), "--context", str(CONTEXT), "--image-cache", "0")
    async with AsyncExitStack() as stack:
        with pinned(last):
            worker = await stack.enter_async_context(WorkerProcess(bundle.path, *options))
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, others or {last})
        yield worker


async def _round(worker: WorkerProcess, client: WorkerClient, asked: Sequence[Asked]) -> Shares:
    """All of `asked`, by as many agents as there are sessions, from the first opening to the last token."""

    async def ask(turns: Sequence[Asked]) -> None:
        for opening, image in turns:
            upload = () if image is None else image_chunks(image)
            async with client.session(opening, upload, timeout=SECONDS) as session:
                async for _ in session.events():
                    pass

    passed, used = await _passed(worker), _used(worker)
    began = time.perf_counter()
    await asyncio.gather(*(ask(asked[agent::SESSIONS]) for agent in range(SESSIONS)))
    seconds = time.perf_counter() - began
    taken = {thread: now - used.get(thread, 0.0) for thread, now in _used(worker).items()}
    return Shares(
        idle=1 - (await _passed(worker) - passed) / seconds,
        beside=1 - max(taken.values()) / sum(taken.values()),  # the engine's is the thread that does the most
    )


async def _passed(worker: WorkerProcess) -> float:
    """Seconds of its passes, until now."""
    seen = await worker.figures()
    return seen.passes * (seen.pass_seconds or 0.0)


def _used(worker: WorkerProcess) -> dict[int, float]:
    """Processor seconds of each of its threads."""
    return {one.id: one.user_time + one.system_time for one in worker.usage.threads()}


def _pictured(bundle: Bundle, seed: int) -> list[Asked]:
    """Questions about cards."""
    prompts = PromptBuilder.open(bundle)
    asked: list[Asked] = []
    for one in islice(requests(Split.EVALUATION, 4 * TURNS, seed), SESSIONS * TURNS):
        grid = bundle.manifest.family.preprocess(decode_image(one.image)).grid
        asked.append((_opening(bundle, prompts.build([question(one.question.text)], [grid]).ids, 1), one.image))
    return asked


def _spoken(bundle: Bundle, seed: int) -> list[Asked]:
    """Prompts of words that mean nothing."""
    dice = np.random.default_rng(seed)
    prompts = dice.integers(100, 40_000, (SESSIONS * TURNS, PROMPT)).tolist()
    return [(_opening(bundle, prompt, 0), None) for prompt in prompts]


def _opening(bundle: Bundle, ids: Sequence[int], images: int) -> Open:
    return Open(
        model=bundle.manifest.identity,
        tokens=tuple(ids),
        prompt_length=len(ids),
        max_tokens=ANSWER,
        images=images,
        sampling=Sampling(temperature=1.0),
    )


if __name__ == "__main__":
    main()
