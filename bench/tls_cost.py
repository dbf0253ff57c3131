"""What TLS costs an answer: `python -m cutline.bench.tls_cost [--cards 20] [--agents 30] [--link wifi] [--json]`.

Three workers, processes of their own, answer the same questions over the same kind of link: in plain text, by mutual
TLS and by TLS with a token, with files of `cutline keys`. They are asked in turn, each question beginning with another,
by agents that stay connected and use nothing of a question for the next. The ratio of medians comes with an interval by
the bootstrap over questions, which are the same for all. What a new agent's first question takes, which connects and
shakes hands, is measured apart. Exits with 1 if a ratio is above 1.1, or the answers are not the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cutline.bench.worker_process import WorkerProcess
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import CardRequest, requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile, load_link
from cutline.edge.agent import Agent, AgentSettings
from cutline.models.bundle import Bundle
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys

MODES = (Mode.CLOUD, Mode.DRAFT)
PLAIN = "plain text"
MOST = 1.1  # times the median in plain text
RESAMPLES = 2_000
CONFIDENCE = 0.95
WARM_UP = 2  # questions

_T = TypeVar("_T")
Kind = tuple[str, Mode | None]  # by what a worker is reached, and the mode; None of a new agent's first question


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What questions took over a `way` of reaching a worker; `mode` is None of those that were an agent's first.

    `ratio` is p50 over that in plain text, which lies in `interval` with 95% confidence; `added_ms` their difference.
    """

    way: str
    mode: Mode | None
    questions: int
    p50_ms: float
    p95_ms: float
    ratio: float
    interval: tuple[float, float]
    added_ms: float


@dataclass(frozen=True, slots=True)
class Way:
    """How a worker is reached: its own options, and what an agent knows it by."""

    name: str
    options: tuple[str, ...] = ()
    keys: AgentKeys = NO_KEYS


@dataclass(slots=True)
class Taken:
    """Milliseconds of each kind of question, the same questions in the same order, and the answers that differ."""

    times: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: int = 0
    different: int = 0


def main() -> None:
    """Measure and print; exit with 1 if TLS costs more than it may."""
    parser = argparse.ArgumentParser(
        prog="python -m cutline.bench.tls_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cards", type=int, default=20, help="cards, six questions each")
    parser.add_argument("--agents", type=int, default=30, help="new agents for each way, one question each")
    parser.add_argument("--link", default="wifi", help="a known link's name, or a profile's path")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    asked, profile = list(requests(Split.EVALUATION, args.cards, args.seed)), load_link(args.link)
    with tempfile.TemporaryDirectory() as place, Progress(console=Console(stderr=True), transient=True) as progress:
        taken = asyncio.run(measure(ways(Path(place)), asked, profile, agents=args.agents, progress=progress))
    found = costs(taken.times, args.seed)
    if args.json:
        told = {"link": profile.name, "answers": taken.answers, "different": taken.different}
        print(json.dumps(told | {"costs": msgspec.to_builtins(found)}, indent=2))
    else:
        show(found, taken, profile)
    sys.exit(int(taken.different > 0 or any(one.ratio > MOST for one in found if one.mode is not None)))


def ways(folder: Path) -> tuple[Way, ...]:
    """Plain text, mutual TLS, and TLS with a token, the keys made anew in a folder."""
    keys, tokens, token = folder / "keys", folder / "tokens.toml", folder / "camera.token"
    _cutline("keys", "init", str(keys))
    _cutline("keys", "add-server", str(keys), "worker")
    _cutline("keys", "add-device", str(keys), "camera")
    _cutline("keys", "token", str(tokens), "camera", "--out", str(token))
    ca, certificate, key = keys / "ca.crt", keys / "camera.crt", keys / "camera.key"
    secured = ("--tls-cert", str(keys / "worker.crt"), "--tls-key", str(keys / "worker.key"))
    return (
        Way(PLAIN),
        Way("mutual TLS", (*secured, "--client-ca", str(ca)), AgentKeys(ca=ca, certificate=certificate, key=key)),
        Way("TLS and token", (*secured, "--tokens", str(tokens)), AgentKeys(ca=ca, token_file=token)),
    )


def _cutline(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cutline.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


async def measure(
    ways: Sequence[Way], asked: Sequence[CardRequest], profile: LinkProfile, *, agents: int, progress: Progress
) -> Taken:
    """Ask every question over every way in every mode, then one of each of so many new agents over every way."""
    taken = Taken()
    async with AsyncExitStack() as stack:
        links: dict[str, str] = {}
        kept: dict[str, Agent] = {}
        for way in ways:
            worker = await stack.enter_async_context(WorkerProcess(TARGET, *way.options, keys=way.keys))
            # Its port is another, its address is not: the one that stands in the certificate.
            link = await stack.enter_async_context(LinkEmulator(profile, target=parse_address(worker.address)))
            links[way.name] = link.address
            kept[way.name] = await stack.enter_async_context(_agent(link.address, way))
        kinds = [(way, mode) for mode in MODES for way in ways]
        for request in asked[:WARM_UP]:
            for way, mode in kinds:
                await kept[way.name].answer(_question(request, mode))
        for number, request in enumerate(progress.track(asked, description="agents that stay")):
            answers = dict[Kind, list[int]]()
            for way, mode in _rotated(kinds, number):
                answer = await kept[way.name].answer(_question(request, mode))
                taken.times[way.name, mode].append(answer.latency_ms)
                answers[way.name, mode] = [token.id for token in answer.tokens]
            taken.answers += len(answers)
            taken.different += sum(ids != answers[PLAIN, mode] for (_, mode), ids in answers.items())
        for number in progress.track(range(agents), description="new agents"):
            for way in _rotated(ways, number):
                async with _agent(links[way.name], way) as agent:
                    answer = await agent.answer(_question(asked[number % len(asked)], Mode.CLOUD))
                taken.times[way.name, None].append(answer.latency_ms)
    return taken


def _agent(worker: str, way: Way) -> Agent:
    return Agent(Bundle.open(DRAFTER), worker=worker, threads=1, keys=way.keys, settings=AgentSettings(fresh=True))


def _question(request: CardRequest, mode: Mode) -> Request:
    return Request.about(request.image, request.question.text, mode=mode)


def _rotated(items: Sequence[_T], by: int) -> Iterator[_T]:
    """All of them, beginning with another each time, so that none always follows the same."""
    return (items[(index + by) % len(items)] for index in range(len(items)))


def costs(times: Mapping[Kind, Sequence[float]], seed: int) -> list[Cost]:
    """Each kind beside plain text, by the milliseconds of the same questions in the same order."""
    return [cost(kind, taken, times[PLAIN, kind[1]], seed) for kind, taken in times.items() if taken]


def cost(kind: Kind, taken: Sequence[float], plain: Sequence[float], seed: int) -> Cost:
    """One kind beside the same questions in plain text, drawn anew in pairs: questions differ in length."""
    pairs = np.array([taken, plain])  # (2, questions)
    drawn = np.random.default_rng(seed).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    over, under = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(over / under, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    half, most = np.quantile(pairs[0], [0.5, 0.95])
    base = float(np.median(pairs[1]))
    return Cost(
        way=kind[0],
        mode=kind[1],
        questions=len(taken),
        p50_ms=float(half),
        p95_ms=float(most),
        ratio=float(half) / base,
        interval=(float(low), float(high)),
        added_ms=float(half) - base,
    )


def show(found: Sequence[Cost], taken: Taken, profile: LinkProfile) -> None:
    """A table of agents that stay, and one of new ones."""
    console = Console(width=110)
    for title, some in (
        (f"Latency over {profile.name}, agents that stay connected", [one for one in found if one.mode is not None]),
        ("The first question of a new agent, which connects", [one for one in found if one.mode is None]),
    ):
        table = Table(title=title, title_justify="left")
        for heading in ("", "mode", "questions", "p50", "p95", "of plain text, p50", "95% interval", "more"):
            table.add_column(heading, justify="left" if heading in ("", "mode") else "right")
        for one in some:
            low, high = one.interval
            table.add_row(
                one.way,
                str(one.mode or Mode.CLOUD),
                str(one.questions),
                f"{one.p50_ms:.1f} ms",
                f"{one.p95_ms:.1f} ms",
                f"{one.ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{one.added_ms:+.1f} ms",
            )
        console.print(table)
    console.print(f"{taken.different} of {taken.answers} answers differ from those in plain text")


if __name__ == "__main__":
    main()
