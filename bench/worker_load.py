"""The worker under load: `python -m cutline.bench.worker_load [--rounds 9] [--plot docs/reference/worker-load.png]`.

On the decoder of SmolVLM-256M's shape (seeded random weights), one thread: what a pass of 16 sessions gains over 16
passes, what drafts cost and gain, what a storm of prompts does to those that are answered, what every further session
costs, and the same prompts in transformers' own continuous batching. Everything that is compared is measured in turn,
in one run.
"""

from __future__ import annotations

import argparse
import copy
import queue
import random
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from cutline.bench.plot_file import save_plot
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError
from cutline.models.bundle import Bundle, write_manifest
from cutline.models.export.source import read_source
from cutline.models.layerline import END
from cutline.protos.messages import Confirmed, Draft, Finished
from cutline.testing.models.random_models import make_smolvlm_256m

AT = 128  # tokens that a session has behind it: about an image in one tile, and a question
SESSIONS = 16
COUNTS = (1, 2, 4, 8, 16, 32, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ACCEPTED = 0.8

Name = TypeVar("Name")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as place:
        bundle = unexported(Path(place))
        targets = {
            name: Target(bundle, Capacity(slots=max(COUNTS), context=512), layers=("decoder.0", END), dtype=dtype)
            for name, dtype in DTYPES.items()
        }
        curves = passes(targets, args.rounds, console)
        for name, target in targets.items():
            console.print(f"[bold]{name}")
            drafting(target, console)
            storm(target, console)
        against_transformers(targets["fp32"], console)
    if args.plot is not None:
        plot(curves, args.plot)


def unexported(folder: Path) -> Bundle:
    """A target's bundle with what a worker reads, without the graphs of a device."""
    make_smolvlm_256m(folder, dtype=torch.float32)
    manifest = read_source(folder).manifest(name="worker-load", role="target", precision="fp32", target=None)
    return Bundle(folder, write_manifest(folder, manifest))


def passes(targets: dict[str, Target], rounds: int, console: Console) -> dict[str, dict[int, float]]:
    """Seconds of a pass by number of sessions, for each of `targets`."""
    works = {(name, kind): work for name, target in targets.items() for kind, work in pass_works(target).items()}
    taken = in_turn(works, rounds)
    for name in targets:
        alone, drafts, one, many = (taken[name, kind] for kind in ("alone", "drafts", "1", str(SESSIONS)))
        console.print(f"[bold]{name}")
        console.print(f"{SESSIONS} sessions at once against one after another: {alone / many:.1f}x")
        console.print(f"verifying 8 drafted tokens against one pass: {drafts / one:.2f}x")
        console.print(", ".join(f"{count}: {taken[name, str(count)] * 1e3:.1f} ms" for count in COUNTS), "by sessions")
    return {name: {count: taken[name, str(count)] for count in COUNTS} for name in targets}


def pass_works(target: Target) -> dict[str, Callable[[], object]]:
    """Passes of one row of each of so many sessions, 8 drafted tokens, a prompt of 64, and all one by one."""
    sessions = [_silent(slot, target.context) for slot in range(target.slots)]

    def decode(count: int) -> Callable[[], object]:
        batch = [SessionRows(sessions[slot], AT + 3 * (slot % SESSIONS), (5,), drafted=0) for slot in range(count)]
        return lambda: target.run(batch, [None] * count)

    works = {str(count): decode(count) for count in COUNTS if count <= target.slots}
    works["drafts"] = lambda: target.run([SessionRows(sessions[0], AT, (5,) * 9, drafted=8)], [None])
    works["prompt"] = lambda: target.run([SessionRows(sessions[0], 0, (5,) * 64, drafted=0)], [None])
    works["alone"] = lambda: [
        target.run([SessionRows(sessions[s], AT + 3 * s, (5,), 0)], [None]) for s in range(SESSIONS)
    ]
    return works


def drafting(target: Target, console: Console, *, answer: int = 64) -> None:
    """Confirmed tokens a second with drafts of which 4 of 5 are right, against none, by sessions at once."""
    run = target.run

    @torch.inference_mode()
    def scripted(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        made = run(batch, images, **how)
        for rows, logits in zip(batch, made, strict=True):
            after = rows.start + len(rows.tokens) - len(logits) + 1
            for index, of in enumerate(logits):
                of[_next_token(after + index)] = torch.inf
        return made

    target.run = scripted  # type: ignore[method-assign, assignment]  # what is right must not hang on ties, which bf16 has
    for count in (1, 4, SESSIONS):
        with _running(target) as engine:
            seconds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(3):
                for drafted in (False, True):
                    began = time.perf_counter()
                    truth = [_next_token(16 + at) for at in range(answer)]
                    talks = [
                        Talk(engine, _prompt(seed, 16), answer, truth=truth if drafted else None)
                        for seed in range(count)
                    ]
                    for talk in talks:
                        assert talk.wait().tokens == truth
                    seconds[drafted].append(time.perf_counter() - began)
        plain, helped = (statistics.median(seconds[drafted]) for drafted in (False, True))
        console.print(
            f"{count} sessions: {count * answer / plain:.0f} tokens/s, with drafts at acceptance {ACCEPTED} "
            f"{count * answer / helped:.0f}: {plain / helped:.2f}x"
        )
    target.run = run  # type: ignore[method-assign]


def storm(target: Target, console: Console) -> None:
    """Time between tokens of calm sessions while prompts of 256 tokens come one after another, 4 at a time."""
    with _running(target) as engine:
        gaps: dict[bool, list[float]] = {}
        for stormy in (False, True):
            stop = threading.Event()
            clients = [threading.Thread(target=_prompts, args=(engine, seed, stop)) for seed in range(4 * stormy)]
            for client in clients:
                client.start()
            calm = [Talk(engine, _prompt(seed, 32), 96) for seed in range(4)]
            gaps[stormy] = [gap for talk in calm for gap in talk.wait().gaps()[8:]]
            stop.set()
            for client in clients:
                client.join()
    median, worst = statistics.median(gaps[False]), float(np.quantile(gaps[True], 0.99))
    console.print(
        f"between tokens: calm {median * 1e3:.0f} ms (p99 {np.quantile(gaps[False], 0.99) * 1e3:.0f}), p99 in a storm "
        f"of prompts {worst * 1e3:.0f} ms: {worst / median:.1f}x the calm median"
    )


def against_transformers(target: Target, console: Console, *, prompt: int = 32, answer: int = 32) -> None:
    """The same prompts and number of tokens in transformers' continuous batching, on one shape."""
    shape = copy.deepcopy(target.model.config.text_config)
    shape._attn_implementation = "sdpa"
    model = LlamaForCausalLM(shape).eval()
    config = GenerationConfig(max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    prompts = [_prompt(seed, prompt) for seed in range(SESSIONS)]

    def theirs() -> None:
        made = model.generate_batch(
            [list(one) for one in prompts],
            generation_config=config,
            continuous_batching_config=batching,
            max_new_tokens=answer,
            warmup=False,
        )
        assert all(len(one.generated_tokens) == answer for one in made.values())

    with _running(target) as engine:

        def ours() -> None:
            for talk in [Talk(engine, one, answer) for one in prompts]:
                assert len(talk.wait().tokens) == answer

        taken = in_turn({"ours": ours, "theirs": theirs}, 3)
    tokens = SESSIONS * answer
    console.print(
        f"{SESSIONS} prompts of {prompt} tokens: {tokens / taken['ours']:.0f} tokens/s, transformers' continuous "
        f"batching {tokens / taken['theirs']:.0f}: {taken['theirs'] / taken['ours']:.1f}x"
    )


class Talk:
    """One session of an engine, answered in the background; with `truth` it drafts 8 tokens, each right by chance."""

    def __init__(
        self, engine: Engine, prompt: Sequence[int], answer: int, *, truth: Sequence[int] | None = None
    ) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []
        self._engine, self._prompt, self._truth = engine, tuple(prompt), truth
        self._dice = random.Random(sum(prompt))  # noqa: S311
        self._done: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = SessionRequest(
            tokens=self._prompt,
            prompt_length=len(prompt),
            max_tokens=answer,
            sampling=Sampling(),
            effort=1.0,
            draft=self._guess(),
            cut="decoder.0",
            tenant=secrets.token_hex(8),  # which no other has: every prompt is run, none is found from before
        )
        self._name = engine.open(request, (), self._hear)

    def wait(self) -> Talk:
        """Until the answer is complete."""
        if isinstance(end := self._done.get(), CutlineError):
            raise end
        return self

    def gaps(self) -> list[float]:
        """Seconds between what was confirmed."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def _guess(self) -> tuple[int, ...]:
        ahead = (self._truth or ())[len(self.tokens) : len(self.tokens) + 8]
        return tuple(token if self._dice.random() < ACCEPTED else token ^ 1 for token in ahead)

    def _hear(self, event: Event) -> None:
        """Called by the engine's thread."""
        if isinstance(event, Confirmed):
            self.tokens += event.tokens
            self.times.append(time.perf_counter())
            if draft := self._guess():
                self._engine.offer(self._name, Draft(len(self._prompt) + len(self.tokens), draft))
        elif isinstance(event, Finished | CutlineError):
            self._done.put(event)


def _prompts(engine: Engine, seed: int, stop: threading.Event) -> None:
    while not stop.is_set():
        Talk(engine, _prompt(seed, 256), 1).wait()


def _prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(100, 40_000, length))


def _next_token(position: int) -> int:
    return 100 + position * 31


def _silent(slot: int, context: int) -> Session:
    """A conversation that nobody hears, to run rows of."""
    request = SessionRequest(
        tokens=(0,), prompt_length=1, max_tokens=context, sampling=Sampling(), effort=1.0, cut="decoder.0"
    )
    return Session("load", request, slot, context)


@contextmanager
def _running(target: Target) -> Iterator[Engine]:
    engine = Engine(target, ())
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def in_turn(works: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Median seconds of each of `works`, all of them measured once a round, after one that warms up."""
    taken: dict[Name, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def plot(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Tokens a second, and milliseconds of a pass, by number of sessions."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    sides: Any = axes
    for name, curve in curves.items():
        sides[0].plot(list(curve), [seconds * 1e3 for seconds in curve.values()], marker="o", label=name)
        sides[1].plot(list(curve), [count / seconds for count, seconds in curve.items()], marker="o", label=name)
    for side, label in zip(sides, ("milliseconds of a pass", "tokens a second, all sessions"), strict=True):
        side.set(xscale="log", xlabel="sessions", ylabel=label, xticks=COUNTS, xticklabels=COUNTS, ylim=(0, None))
        side.minorticks_off()
        side.legend(frameon=False)
        side.spines[["top", "right"]].set_visible(False)
    save_plot(figure, path, dpi=110)


if __name__ == "__main__":
    main()
