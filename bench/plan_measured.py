"""What bench/plan_accuracy.py measures: a device as slow as it is told to be, a worker, links between, and every plan.

The agent runs on a core of its own, made slow (cutline.bench.slow), the worker on another; each is a process of its own,
and so is `cutline profile`, which measures them just as they are.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from cutline.bench.slow import pinned, slowed
from cutline.cli.processes import agent_process, worker_process
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import load_link
from cutline.edge.agent import Agent
from cutline.edge.answer import Mode, Question
from cutline.edge.drafter import Drafter
from cutline.edge.gate import open_gate
from cutline.edge.remote import ask_over
from cutline.models.bundle import Bundle
from cutline.models.families import Grid
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder, question
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire
from cutline.partitioner.plan import Choice
from cutline.protos.address import parse_address

EDGE_CORE, CLOUD_CORE = 0, 1
MAX_TOKENS = 64
CARDS = 40  # to choose requests from


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request: its sizes, how many of the answer's tokens the drafter foresees, and whether the gate keeps it.

    `weight` is its share of a mean over requests.
    """

    image: bytes
    text: str
    grid: Grid
    image_bytes: int
    prompt_tokens: int
    answer_tokens: int
    foreseen: int
    kept: bool
    weight: float


def choose(drafter: Bundle, worker: str, *, kept: int, passed: int, seed: int) -> list[Asking]:
    """Requests of the demo, drawn by `seed`: so many that the gate keeps, and so many that it passes on.

    They are weighed so that the gate keeps the share that it kept when it was calibrated.
    """
    manifest, gate, greedy = drafter.manifest, open_gate(drafter), Sampling()
    drafting, prompts = Drafter.open(drafter, threads=1), PromptBuilder.open(drafter)
    wanted, share = {True: kept, False: passed}, gate.kept / gate.requests
    weights = {True: share / kept, False: (1 - share) / passed}
    drawn = list(requests(Split.EVALUATION, CARDS, seed))
    random.Random(seed).shuffle(drawn)

    async def truth(image: bytes, text: str) -> list[int]:
        async with Agent(drafter, worker=worker, threads=1) as agent:
            answer = await agent.answer(Question(image=image, text=text, mode=Mode.CLOUD, max_tokens=MAX_TOKENS))
        return [token.id for token in answer.tokens]

    chosen: list[Asking] = []
    for one in drawn:
        picture = decode_image(one.image)
        pixels = manifest.family.preprocess(picture)
        prompt = prompts.build([question(one.question.text)], [pixels.grid]).ids
        conversation = drafter_answers = drafting.converse(prompt, pixels, greedy)
        keeps = gate.keeps(list(drafter_answers.draft((), MAX_TOKENS)), greedy)
        if wanted[keeps] == 0:
            continue
        wanted[keeps] -= 1
        tokens = asyncio.run(truth(one.image, one.question.text))
        foreseen = conversation.logits(tokens[:-1]).argmax(axis=-1) == np.array(tokens)
        chosen.append(
            Asking(
                image=one.image,
                text=one.question.text,
                grid=pixels.grid,
                image_bytes=len(manifest.family.shrink(one.image, picture)),
                prompt_tokens=len(prompt),
                answer_tokens=len(tokens),
                foreseen=int(foreseen.sum()),
                kept=keeps,
                weight=weights[keeps],
            )
        )
        if not any(wanted.values()):
            break
    return chosen


def profile(role: str, out: Path, *, core: int, speed: float, image: bytes | None = None) -> None:
    """Have `cutline profile` measure a core that is as slow as `speed` says, into the file `out`."""
    command = [sys.executable, "-m", "cutline.cli", "profile", "--as", role, "--threads", "1", "--out", str(out)]
    if image is not None:
        picture = out.with_suffix(".png")
        picture.write_bytes(image)
        command += ["--image", str(picture)]
    with slowed(core, speed), pinned(core):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


Latencies = dict[Choice, list[float]]  # by plan, those of each request in seconds


def measure(
    drafter: Bundle,
    target: Bundle,
    worker: str,
    links: Sequence[str],
    choices: Sequence[Choice],
    asked: Sequence[Asking],
    *,
    speed: float,
    seconds: float,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Latencies]:
    """Median seconds of every request by every plan over each link, asked in turn for about `seconds` a link.

    The device has a share `speed` of its core.
    """
    return asyncio.run(_measure(drafter, target, worker, links, choices, asked, speed, seconds, seed, tell))


async def _measure(
    drafter: Bundle,
    target: Bundle,
    worker: str,
    links: Sequence[str],
    choices: Sequence[Choice],
    asked: Sequence[Asking],
    speed: float,
    seconds: float,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Latencies]:
    found: dict[str, Latencies] = {}
    for link in links:
        async with AsyncExitStack() as stack:
            emulator = await stack.enter_async_context(
                LinkEmulator(load_link(link), target=parse_address(worker), seed=seed)
            )
            stack.enter_context(slowed(EDGE_CORE, speed))
            with pinned(EDGE_CORE):
                agent = stack.enter_context(agent_process(drafter.path, emulator.address, "--target", str(target.path)))
            client = stack.enter_context(httpx.Client(base_url=f"http://{agent}", timeout=120, trust_env=False))

            async def answer(choice: Choice, one: Asking, client: httpx.Client = client) -> float:
                made = await asyncio.to_thread(ask_over, client, put(choice, one))
                return made.latency_ms / 1e3

            tell(f"{link}, speed {speed:g}: warming up")
            for choice in choices:  # loads what the agent loads when it is first needed
                await answer(choice, asked[0])
            found[link] = await _rounds(answer, choices, asked, seconds, random.Random(seed), f"{link}, {speed:g}", tell)
    return found


async def _rounds(answer, choices, asked, seconds, rng, name, tell) -> Latencies:
    times: dict[tuple[Choice, int], list[float]] = {}
    began, count = time.monotonic(), 0
    ways = [(choice, index) for choice in choices for index in range(len(asked)) if not _same_as_another(choice, asked[index])]
    while count == 0 or (time.monotonic() - began) * (count + 1) / count < seconds:
        tell(f"{name}: round {count + 1}")
        rng.shuffle(ways)
        for choice, index in ways:
            times.setdefault((choice, index), []).append(await answer(choice, asked[index]))
        count += 1
    tell(f"{name}: {count} rounds, {time.monotonic() - began:.0f} s")
    first = next(choice for choice in choices if choice.mode == "auto")
    return {
        choice: [
            median(times[first if _same_as_another(choice, one) else choice, index]) for index, one in enumerate(asked)
        ]
        for choice in choices
    }


def _same_as_another(choice: Choice, one: Asking) -> bool:
    """Whether an answer that the gate keeps is never cut, so that it is enough to ask at one cut."""
    return choice.mode == "auto" and choice.cut != "image" and one.kept


def put(choice: Choice, one: Asking) -> Question:
    """The question that asks for one plan."""
    return Question(
        image=one.image,
        text=one.text,
        mode=Mode(choice.mode),
        max_tokens=MAX_TOKENS,
        effort=choice.drafting.effort if choice.drafting else 1.0,
        cut=choice.cut or "image",
        wire=choice.wire or Wire.FLOAT32,
    )
