"""What bench/plan_accuracy.py measures: a device as slow as it is told to be, a worker, a link, and every plan.

The agent runs on a core of its own, made slow (cutline.bench.slow), the worker on another. Each is a process of its
own, and so is `cutline profile`, which measures them just as they are.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from cutline.bench.plan_figures import LIMITS
from cutline.bench.slow import pinned, slowed
from cutline.cli.process.children import agent_process
from cutline.core.conversation import question
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.demo.cards import Split
from cutline.demo.requests import CardRequest, requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import load_link
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.api.client import ask_over
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import Group, open_gate
from cutline.edge.inference.drafter import Drafter
from cutline.errors import BundleError
from cutline.models.bundle import Bundle
from cutline.models.families import Grid
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.partitioner.plan import Choice
from cutline.protos.channel.address import parse_address

EDGE_CORE, CLOUD_CORE = 0, 1
MAX_TOKENS = 64
CARDS = 40  # to choose requests from

Tell = Callable[[str], None]  # hears what is being done
Seconds = dict[Choice, float]  # of each plan, as means over the requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request, its sizes, and what the models make of it; `weight` is its share of a mean over requests.

    Of the `answer_tokens` of the target's answer the drafter foresees `foreseen`; `kept` says that the gate keeps its
    own.
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

    They are weighed so that the gate keeps the share that it kept when it was calibrated. Raises BundleError.
    """
    gate, left = _plain(drafter), {True: kept, False: passed}
    share = gate.kept / gate.requests
    weights = {True: share / kept, False: (1 - share) / passed}
    look, chosen = _looker(drafter, worker), list[Asking]()
    drawn = list(requests(Split.EVALUATION, CARDS, seed))
    order = iter(np.random.default_rng(seed).permutation(len(drawn)))
    while any(left.values()):
        one = look(drawn[next(order)], weights)
        if left[one.kept]:
            left[one.kept] -= 1
            chosen.append(one)
    return chosen


def _plain(drafter: Bundle) -> Group:
    """What the gate does with plain questions. Raises BundleError where it keeps none."""
    if (group := open_gate(drafter).of(PLAIN)) is None:
        raise BundleError(f"the gate of {drafter.path} keeps no answer to a plain question; calibrate it")
    return group


def _looker(drafter: Bundle, worker: str) -> Callable[[CardRequest, Mapping[bool, float]], Asking]:
    """What looks at a request: asks the drafter, its gate and the target."""
    manifest, gate, greedy = drafter.manifest, _plain(drafter), Sampling()
    model, prompts = Drafter.open(drafter, threads=1), PromptBuilder.open(drafter)

    async def truth(asked: Request) -> list[int]:
        async with Agent(drafter, worker=worker, threads=1, settings=AgentSettings(fresh=True)) as agent:
            return [token.id for token in (await agent.answer(asked)).tokens]

    def look(request: CardRequest, weights: Mapping[bool, float]) -> Asking:
        text, picture = request.question.text, decode_image(request.image)
        pixels = manifest.family.preprocess(picture)
        prompt = prompts.build([question(text)], [pixels.grid]).ids
        drafting = model.converse(prompt, [pixels], greedy)
        kept = gate.keeps(list(drafting.draft((), MAX_TOKENS)), manifest.stop_tokens)
        asked = Request.about(request.image, text, mode=Mode.CLOUD, max_tokens=MAX_TOKENS)
        tokens = asyncio.run(truth(asked))
        foreseen = drafting.logits(tokens[:-1]).argmax(axis=-1) == np.array(tokens)
        return Asking(
            image=request.image,
            text=text,
            grid=pixels.grid,
            image_bytes=len(manifest.family.shrink(request.image, picture)),
            prompt_tokens=len(prompt),
            answer_tokens=len(tokens),
            foreseen=int(foreseen.sum()),
            kept=kept,
            weight=weights[kept],
        )

    return look


def profile(role: str, out: Path, *, core: int, speed: float, image: bytes | None = None) -> None:
    """Have `cutline profile` measure a core that is as slow as `speed` says, into the file `out`."""
    command = [sys.executable, "-m", "cutline.cli", "profile", "--as", role, "--threads", "1", "--out", str(out)]
    if image is not None:
        picture = out.with_suffix(".png")
        picture.write_bytes(image)
        command += ["--image", str(picture)]
    with slowed(core, speed), pinned(core):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cell to measure in: a device with the share `speed` of its core, a link, a worker, and their profiles."""

    drafter: Bundle
    target: Bundle
    worker: str
    link: str
    speed: float
    edge_profile: Path
    cloud_profile: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Seconds of all plans; of the best of them once more, side by side with an agent that plans under each limit."""

    every: Seconds
    finals: Seconds
    planned: dict[str, float]


Finalists = Callable[[Seconds], Sequence[Choice]]  # which plans to measure once more


async def measure(
    place: Place,
    choices: Sequence[Choice],
    asked: Sequence[Asking],
    finalists: Finalists,
    *,
    seconds: float,
    finals_seconds: float,
    rng: np.random.Generator,
    tell: Tell,
) -> Found:
    """Ask every request by every plan, in turn and again for about `seconds`; then the finalists, likewise."""
    async with AsyncExitStack() as stack:
        link = LinkEmulator(load_link(place.link), target=parse_address(place.worker), seed=int(rng.integers(1 << 30)))
        emulator = await stack.enter_async_context(link)
        stack.enter_context(slowed(EDGE_CORE, place.speed))
        target = ("--target", str(place.target.path))
        profiles = ("--edge-profile", str(place.edge_profile), "--cloud-profile", str(place.cloud_profile))
        with pinned(EDGE_CORE):
            plain, planning = [
                stack.enter_context(agent_process(place.drafter.path, emulator.address, "--fresh", *target, *more))
                for more in ((), (*profiles, "--link", place.link))
            ]
        clients = {
            agent: await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://{agent}", timeout=120, trust_env=False)
            )
            for agent in (plain, planning)
        }

        async def answer(way: Choice | str, one: Asking) -> float:
            """Seconds of a plan, or of the agent that plans, under the limit of this name."""
            client = clients[planning if isinstance(way, str) else plain]
            return (await ask_over(client, _put(way, one))).latency_ms / 1e3

        tell(f"speed {place.speed:g} over {place.link}: warming up")
        shortest = min(asked, key=lambda one: one.answer_tokens)
        loading = {(one.mode, one.cut): one for one in choices if one.mode in ("edge", "cloud", "draft")}
        for choice in loading.values():  # each cut's graphs
            await answer(choice, shortest)
        for limits in LIMITS:
            for one in asked:
                await answer(limits, one)
        tell(f"speed {place.speed:g} over {place.link}: {len(choices)} plans")
        every = await _rounds(answer, choices, asked, seconds, rng)
        best = finalists({choice: every[choice] for choice in choices})
        tell(f"speed {place.speed:g} over {place.link}: the best {len(best)}")
        finals = await _rounds(answer, [*best, *LIMITS], asked, finals_seconds, rng)
    return Found(
        every={choice: every[choice] for choice in choices},
        finals={choice: finals[choice] for choice in best},
        planned={limits: finals[limits] for limits in LIMITS},
    )


async def _rounds(
    answer: Callable[[Choice | str, Asking], Awaitable[float]],
    ways: Sequence[Choice | str],
    asked: Sequence[Asking],
    seconds: float,
    rng: np.random.Generator,
) -> dict[Choice | str, float]:
    """Mean seconds over the requests, each by the median of as many rounds as `seconds` allow: one at least.

    An answer that the gate keeps is the same whatever the cut, so it is asked for once.
    """
    times: dict[tuple[Choice | str, int], list[float]] = defaultdict(list)
    pairs = list({(_carried_out(way, one), index): one for way in ways for index, one in enumerate(asked)}.items())
    began, rounds = time.monotonic(), 0
    while rounds == 0 or (time.monotonic() - began) * (rounds + 1) / rounds < seconds:
        for at in rng.permutation(len(pairs)):  # so that a slow spell of the machine hits all of them
            pair, one = pairs[at]
            times[pair].append(await answer(pair[0], one))
        rounds += 1
    return {
        way: sum(one.weight * median(times[_carried_out(way, one), index]) for index, one in enumerate(asked))
        for way in ways
    }


def _carried_out(way: Choice | str, one: Asking) -> Choice | str:
    """What is asked for in place of a plan: one for all of mode auto where the gate keeps the answer."""
    if isinstance(way, Choice) and way.mode == "auto" and one.kept:
        return Choice(mode=Mode.AUTO, cut="image", drafting=way.drafting)
    return way


def _put(way: Choice | str, one: Asking) -> Request:
    if isinstance(way, str):
        bound = LIMITS[way]
        return Request.about(
            one.image,
            one.text,
            max_tokens=MAX_TOKENS,
            exact=bound.exact,
            image_must_stay=bound.image_must_stay,
        )
    return Request.about(
        one.image,
        one.text,
        mode=Mode(way.mode),
        max_tokens=MAX_TOKENS,
        effort=way.drafting.effort if way.drafting else 1.0,
        cut=way.cut or "image",
        wire=way.wire or Wire.FLOAT32,
    )
