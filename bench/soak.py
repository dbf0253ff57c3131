"""Whether anything grows: `python -m cutline.bench.soak [--minutes 60] [--plot soak.png] [--seed 1]`.

Agents of three tenants ask two workers, processes of their own, without a pause: in every mode, at several cuts, in
conversations that go on; they give questions up, vanish without a word, and come back; and as the places are few,
waiting sessions lose theirs. Every ten seconds it is noted what each process takes, how many sessions are open, and how
many slots, which hold their keys and values, are in use. After the first quarter nothing may rise by more than its
allowance (`RULES` of cutline.bench.flatness), by the median slope over all that was noted; exits with 1 otherwise, or
if an answer was wrong, a worker ended by itself, or a session is left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from cutline.bench.faults.cases import WAYS
from cutline.bench.faults.checking import hear
from cutline.bench.faults.lane import Asker
from cutline.bench.faults.link import FaultyLink
from cutline.bench.faults.rig import asker, ungated
from cutline.bench.flatness import WARM_UP, Log, taken
from cutline.bench.plot_file import save_plot
from cutline.bench.worker_process import WorkerProcess
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.demo.bundles import TARGET
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Settled
from cutline.errors import CutlineError, WorkerError
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import AgentKeys
from cutline.protos.channel.token_file import token_entry
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Draft, Open

SAMPLE_SECONDS = 10.0
SLOTS = 2
TENANTS = ("camera", "door", "dock")
EMPTY_SECONDS = 45.0


def main() -> None:
    """Run, print and plot; exit with 1 if something grew or was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sample-seconds", type=float, default=SAMPLE_SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        soak = Soak(Path(place), args.seed)
        good = asyncio.run(soak.run(args.minutes * 60, args.sample_seconds, Console(width=130)))
    if args.plot is not None:
        plot(soak.log, args.plot)
    sys.exit(0 if good else 1)


class Soak:
    """The load, and what is noted meanwhile."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.log = Log()
        self._folder = folder
        self._seed = seed
        self._did: Counter[str] = Counter()
        self._keys: dict[str, AgentKeys] = {}
        self._drafter = ungated(folder / "drafter")
        self._asker: Asker = asker(self._drafter, cards=6, seed=seed)

    async def run(self, seconds: float, every: float, console: Console) -> bool:
        """Load two workers for so long, and print. Whether all is as it must be."""
        tokens = {tenant: secrets.token_urlsafe(32) for tenant in TENANTS}
        known = self._folder / "tokens.toml"
        known.write_text("".join(token_entry(tenant, token) for tenant, token in tokens.items()))
        known.chmod(0o600)
        self._keys = {tenant: AgentKeys(token=token) for tenant, token in tokens.items()}
        own = self._keys[TENANTS[0]]
        options = ("--max-sessions", str(SLOTS), "--image-cache", "500000", "--tokens", str(known))
        async with (
            WorkerProcess(TARGET, *options, keys=own) as first,
            WorkerProcess(TARGET, *options, keys=own) as second,
        ):
            workers = {"worker 1": first, "worker 2": second}
            end = time.monotonic() + seconds
            noting = asyncio.create_task(self._note(workers, every))
            loads = [self._ask(tenant, first.address, second.address, end) for tenant in TENANTS]
            loads += [self._vanish(first.address, end), self._idle(second.address, end)]
            await asyncio.gather(*loads)
            noting.cancel()
            left = await self._left(workers)
            fell = [name for name, worker in workers.items() if worker.fell]
        return self._report(left, fell, seconds, console)

    async def _ask(self, tenant: str, first: str, second: str, end: float) -> None:
        """Ask in every way, now and then give up, and now and then begin anew as another agent."""
        rng = random.Random(f"{self._seed} {tenant}")  # noqa: S311
        order = [first, second] if rng.random() < 0.5 else [second, first]
        target = Bundle.open(TARGET, "device")
        while time.monotonic() < end:
            keys = self._keys[tenant]
            async with Agent(self._drafter, worker=order, threads=1, target=target, keys=keys) as agent:
                for _ in range(40):
                    if time.monotonic() >= end:
                        return
                    await self._one(agent, rng)

    async def _one(self, agent: Agent, rng: random.Random) -> None:
        index, way = rng.randrange(len(self._asker.requests)), rng.choice(WAYS)
        question = self._asker.question(index, **way)
        if rng.random() < 0.2:
            await self._give_up(agent, question, rng.randrange(1, 6))
            return
        heard = await hear(agent, question)
        if heard.answer is None:
            self._did["refused"] += 1
            return
        ids = tuple(token.id for token in heard.answer.tokens)
        whole = heard.answer.alone_from is None
        self._did["answers"] += 1
        self._did["alone"] += not whole
        if whole and "sampling" not in way:
            self._did["wrong"] += ids != self._asker.truths[index]
        if rng.random() < 0.3:  # a conversation goes on
            said = [
                Message("assistant", (TextPart(heard.answer.text),)),
                Message("user", (TextPart("And what else?"),)),
            ]
            more = (*question.messages, *said)
            await hear(agent, Request(messages=more, images=question.images, mode=Mode.DRAFT, max_tokens=12))
            self._did["went on"] += 1

    async def _give_up(self, agent: Agent, question: Request, after: int) -> None:
        with contextlib.suppress(WorkerError):
            async with contextlib.aclosing(agent.stream(question)) as events:
                async for event in events:
                    if isinstance(event, Settled) and event.position >= after:
                        break
        self._did["given up"] += 1

    async def _vanish(self, worker: str, end: float) -> None:
        """Agents whose links go silent for ever, in the middle of an answer."""
        rng = random.Random(f"{self._seed} vanish")  # noqa: S311
        while time.monotonic() < end:
            async with FaultyLink(worker, pace=5000.0) as link:
                with contextlib.suppress(CutlineError, TimeoutError):
                    async with (
                        asyncio.timeout(1.0),
                        Agent(self._drafter, worker=link.address, threads=1, keys=self._keys[TENANTS[1]]) as agent,
                        contextlib.aclosing(agent.stream(self._asker.question(0, mode=Mode.CLOUD))) as events,
                    ):
                        async for event in events:
                            if isinstance(event, Settled):
                                link.hold()
                                link.forget()
                link.heal()
                self._did["vanished"] += 1
                await asyncio.sleep(min(rng.uniform(2.0, 6.0), max(0.0, end - time.monotonic())))

    async def _idle(self, worker: str, end: float) -> None:
        """Sessions that wait for drafts which never come: others take their places."""
        manifest = Bundle.open(TARGET, "device").manifest
        opening = Open(model=manifest.identity, tokens=(5, 6, 7), prompt_length=3, max_tokens=8, effort=0.0)
        while time.monotonic() < end:
            async with WorkerClient(worker, self._keys[TENANTS[2]]) as client:
                with contextlib.suppress(CutlineError, TimeoutError):
                    async with asyncio.timeout(8.0), client.session(opening, (), timeout=20.0) as session:
                        await session.offer(Draft(3, (9,)))
                        async for _ in session.events():
                            pass
                self._did["idled"] += 1
                await asyncio.sleep(min(1.0, max(0.0, end - time.monotonic())))

    async def _note(self, workers: dict[str, WorkerProcess], every: float) -> None:
        while True:
            now = time.monotonic()
            self.log.add("agents", now, taken(psutil.Process()))
            for name, worker in workers.items():
                if worker.fell:
                    continue
                figures = await worker.figures()
                open_now = {"sessions": float(figures.sessions_open), "slots": float(figures.slots_in_use)}
                self.log.add(name, now, taken(worker.usage) | open_now)
            await asyncio.sleep(max(0.0, every - (time.monotonic() - now)))

    async def _left(self, workers: dict[str, WorkerProcess]) -> int:
        """Sessions that are left once workers had time to find out who is gone."""
        end, left = time.monotonic() + EMPTY_SECONDS, 0
        while time.monotonic() < end:
            standing = [worker for worker in workers.values() if not worker.fell]
            left = sum([max(await one.sessions(), (await one.figures()).sessions_open) for one in standing])
            if not left:
                break
            await asyncio.sleep(1.0)
        return left

    def _report(self, left: int, fell: list[str], seconds: float, console: Console) -> bool:
        trends = self.log.trends()
        table = Table(title=f"{seconds / 60:.0f} minutes, the first {WARM_UP:.0%} left out", title_justify="left")
        for heading in ("process", "figure", "middle", "rise", "an hour", ""):
            table.add_column(heading, justify="right" if heading in ("middle", "rise", "an hour") else "left")
        for (process, figure), of in trends.items():
            table.add_row(
                process,
                figure,
                f"{of.level:.1f}",
                f"{of.rise:+.2f}",
                f"{of.hourly:+.2f}",
                "flat" if of.flat else "[red]not flat",
            )
        console.print(table)
        console.print(", ".join(f"{what} {count}" for what, count in sorted(self._did.items())))
        console.print(
            f"sessions left at the end: {left}; workers that ended by themselves: {', '.join(fell) or 'none'}"
        )
        return all(of.flat for of in trends.values()) and not (left or fell or self._did["wrong"])


def plot(log: Log, path: Path) -> None:
    """Every figure over time, a line a process."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figures = list(dict.fromkeys(figure for _, figure in log.samples))
    processes = dict.fromkeys(process for process, _ in log.samples)
    colors = {process: f"C{index}" for index, process in enumerate(processes)}
    figure, axes = pyplot.subplots(len(figures), 1, figsize=(8, 2 * len(figures)), sharex=True, layout="constrained")
    sides: Any = axes
    for side, name in zip(sides, figures, strict=True):
        for (process, of), (times, values) in log.samples.items():
            if of == name:
                began = times[0]
                minutes = [(at - began) / 60 for at in times]
                side.plot(minutes, values, color=colors[process], label=process, linewidth=1)
        side.set(ylabel=name, ylim=(0, None))
        side.spines[["top", "right"]].set_visible(False)
    sides[0].legend(frameon=False, ncols=3)
    sides[-1].set(xlabel="minutes")
    save_plot(figure, path, dpi=110)


if __name__ == "__main__":
    main()
