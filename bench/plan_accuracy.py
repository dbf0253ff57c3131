"""How right the planner is.

    python -m cutline.bench.plan_accuracy [--json FILE] [--plot docs/explanation/plan-accuracy.png]

Measures every mode at six cuts in two wire formats, on a device of several speeds over several links, beside what the
planner predicts from profiles that `cutline profile` measured there: how far predictions are off, what the planner's
choice costs against the best plan, and what an agent does that plans by itself (mode auto).

A prediction is what `cutline plan` says for the mean lengths of prompt and answer, the acceptance of these requests,
the named link's profile, and the gate as it was calibrated.

Needs two cores. One is made slow by a process with real-time priority, so root or CAP_SYS_NICE (without it:
`--speeds 1`). All of it runs at the highest priority it can get: other programs on the machine are no part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from cutline.bench.plan_figures import LIMITS, Cell, Choosing, Result, Timed, result, spread
from cutline.bench.plan_measured import (
    CLOUD_CORE,
    EDGE_CORE,
    Asking,
    Found,
    Place,
    Seconds,
    Tell,
    choose,
    measure,
    profile,
)
from cutline.bench.slow import pinned
from cutline.cli.process.children import worker_process
from cutline.cli.setting import open_drafter, open_target
from cutline.core.storage.files import write_file
from cutline.core.wire import Wire
from cutline.devices.link import load_link
from cutline.edge.planning.plan_inputs import setting_of
from cutline.partitioner.plan import PARTS, Choice, Conditions, Limits, Space
from cutline.partitioner.search import Search, search, within
from cutline.partitioner.setting import Asked, Setting
from cutline.partitioner.spans import Floats

CUTS = ("image", "vision.0", "vision.2", "decoder.0", "decoder.2", "head")
WIRES = (Wire.FLOAT32, Wire.INT8)
AGREEMENT = 0.9  # the least, as `cutline plan` and agents have it
FINALISTS = 3  # the best plans under each limit, beside the planner's choice
MISSED, SHOWN = 0.25, 20  # predictions off by more than so much are told, so many of them
QUICK = {"speeds": [1.0, 0.25], "links": ["wifi", "4g"], "seconds": 6.0, "finals": 4.0}


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeds", nargs="+", type=float, default=[1.0, 0.5, 0.25], help="shares of the device's core")
    parser.add_argument("--links", nargs="+", default=["wifi", "5g", "4g", "3g"], help="names of link profiles")
    parser.add_argument("--kept", type=int, default=2, help="requests whose draft the gate keeps")
    parser.add_argument("--passed", type=int, default=1, help="requests that it passes on")
    parser.add_argument("--seconds", type=float, default=18.0, help="of all plans in each cell; one round at least")
    parser.add_argument("--finals", type=float, default=12.0, help="seconds of the best plans in each cell, likewise")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--profiles", type=Path, help="folder to keep the profiles in; those that are there are used")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--plot", type=Path, help="a file for the plot")
    parser.add_argument("--quick", action="store_true", help="two speeds, two links, few rounds")
    if (args := parser.parse_args()).quick:
        vars(args).update(QUICK)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -19)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as place, console.status("opening") as status:
        folder = args.profiles or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        made = run(args, folder, tell=status.update)
    if args.json:
        write_file(args.json, msgspec.json.format(msgspec.json.encode(made)))
    show(console, made)
    if args.plot:
        from cutline.bench.plan_accuracy_plot import draw

        draw(args.plot, made)


def run(args: argparse.Namespace, folder: Path, *, tell: Tell) -> Result:
    """Profile, then measure cell by cell."""
    drafter, target = open_drafter(None), open_target(None)
    cells = []
    with ExitStack() as stack:
        with pinned(CLOUD_CORE):
            worker = stack.enter_context(worker_process(target.path))
        tell("choosing requests")
        asked = choose(drafter, worker, kept=args.kept, passed=args.passed, seed=args.seed)
        cloud_profile = folder / "cloud.toml"
        profiled("cloud", cloud_profile, core=CLOUD_CORE, speed=1.0, tell=tell)
        for speed in args.speeds:
            edge_profile = folder / f"edge-{speed:g}.toml"
            profiled("edge", edge_profile, core=EDGE_CORE, speed=speed, image=asked[0].image, tell=tell)
            setting = setting_of(drafter, target, edge=edge_profile, cloud=cloud_profile, wants_gate=True)
            for link in args.links:
                now = Conditions.over(load_link(link), acceptance=acceptance(asked))
                predicted = predict(setting, asked, now)
                place = Place(
                    drafter=drafter,
                    target=target,
                    worker=worker,
                    link=link,
                    speed=speed,
                    edge_profile=edge_profile,
                    cloud_profile=cloud_profile,
                )
                found = asyncio.run(
                    measure(
                        place,
                        predicted.choices,
                        asked,
                        partial(finalists, predicted),
                        seconds=args.seconds,
                        finals_seconds=args.finals,
                        rng=np.random.default_rng(args.seed),
                        tell=tell,
                    )
                )
                cells.append(cell(place, predicted, found))
    _, prompt, answer = mean_sizes(asked)
    return result(cells, prompt_tokens=prompt, answer_tokens=answer, acceptance=acceptance(asked))


def profiled(role: str, out: Path, *, core: int, speed: float, image: bytes | None = None, tell: Tell) -> None:
    """See that there is a profile."""
    if not out.exists():
        tell(f"profiling, as {role}, with {speed:g} of a core")
        profile(role, out, core=core, speed=speed, image=image)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the planner says of requests of mean sizes: seconds (n,) of each choice, and its parts (len(PARTS), n)."""

    search: Search
    seconds: Floats
    parts: Floats

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.search.terms.choices


def predict(setting: Setting, asked: Sequence[Asking], now: Conditions) -> Predicted:
    """The predictions for the requests' mean sizes; those of a length that is no whole number of tokens lie between."""
    image, prompt, answer = mean_sizes(asked)
    space = Space(cuts=CUTS, wires=WIRES, efforts=(1.0,))
    low, high = (
        search(
            setting,
            Asked(grids=(asked[0].grid,), image_bytes=round(image), prompt_tokens=round(prompt), answer_tokens=tokens),
            space,
            now,
            limits=Limits(),
        )
        for tokens in (math.floor(answer), math.ceil(answer))
    )
    share = answer - math.floor(answer)
    return Predicted(
        low,
        low.found.latency * (1 - share) + high.found.latency * share,
        low.found.parts * (1 - share) + high.found.parts * share,
    )


def mean_sizes(asked: Sequence[Asking]) -> tuple[float, float, float]:
    """Mean bytes of the image as it is uploaded, tokens of the prompt, tokens of the answer."""
    sizes = [(one.image_bytes, one.prompt_tokens, one.answer_tokens) for one in asked]
    image, prompt, answer = np.average(sizes, axis=0, weights=[one.weight for one in asked]).tolist()
    return image, prompt, answer


def acceptance(asked: Sequence[Asking]) -> float:
    """The share of the target's tokens that the drafter foresees."""
    return sum(one.weight * one.foreseen for one in asked) / sum(one.weight * one.answer_tokens for one in asked)


def allowed(predicted: Predicted, limits: str) -> list[Choice]:
    """The plans that keep to the limits, best predicted first."""
    bound = LIMITS[limits]
    bounds = Limits(agreement=AGREEMENT, exact=bound.exact, image_must_stay=bound.image_must_stay)
    found = predicted.search
    keeps = np.ones(len(found), bool)
    for one in within(found.terms, found.found, found.line, bounds).values():
        keeps &= one
    return [predicted.choices[index] for index in np.argsort(predicted.seconds, kind="stable") if keeps[index]]


def finalists(predicted: Predicted, every: Seconds) -> list[Choice]:
    """The planner's choice and the best measured plans under each limit."""
    found: dict[Choice, None] = {}
    for limits in LIMITS:
        plans = allowed(predicted, limits)
        found |= dict.fromkeys([plans[0], *sorted(plans, key=every.__getitem__)[:FINALISTS]])
    return list(found)


def cell(place: Place, predicted: Predicted, found: Found) -> Cell:
    """Predictions and measurements side by side."""
    plans, choosing = [], []
    for index, choice in enumerate(predicted.choices):
        plans.append(
            Timed(
                plan=str(choice),
                mode=choice.mode,
                cut=choice.cut,
                predicted_ms=float(predicted.seconds[index]) * 1e3,
                measured_ms=found.every[choice] * 1e3,
                parts_ms=dict(zip(PARTS, (predicted.parts[:, index] * 1e3).tolist(), strict=True)),
            )
        )
    for limits in LIMITS:
        chosen, *others = [choice for choice in allowed(predicted, limits) if choice in found.finals]
        best = min((chosen, *others), key=found.finals.__getitem__)
        plain = [found.every[choice] * 1e3 for choice in allowed(predicted, limits) if choice.cut == "image"]
        choosing.append(
            Choosing(
                limits=limits,
                chosen=str(chosen),
                chosen_ms=found.finals[chosen] * 1e3,
                best=str(best),
                best_ms=found.finals[best] * 1e3,
                auto_ms=found.planned[limits] * 1e3,
                plain_ms=min(plain, default=None),
            )
        )
    return Cell(speed=place.speed, link=place.link, plans=plans, choosing=choosing)


def show(console: Console, made: Result) -> None:
    """Print the figures, every choice, and what misses."""
    console.print(
        f"prompts of {made.prompt_tokens:.1f} tokens, answers of {made.answer_tokens:.1f}, "
        f"acceptance {made.acceptance:.3f}"
    )
    console.print(_errors(made))
    console.print(_choices(made))
    by_cuts = made.regret_by_cuts
    console.print(f"regret: median {made.regret_median:.1%}, most {made.regret_most:.1%}")
    console.print(
        f"regret where some cuts are left out, {by_cuts.n} choices: median {by_cuts.median:.1%}, "
        f"90th percentile {by_cuts.ninth_decile:.1%}, most {by_cuts.most:.1%}"
    )
    console.print(
        f"an agent that plans is within 5% of the best plan in {made.auto_within:.0%} of the choices, of the best mode "
        f"without planning in {made.auto_within_plain:.0%}"
    )
    missed = [(cell, plan) for cell in made.cells for plan in cell.plans if abs(plan.error) > MISSED]
    console.print(f"{len(missed)} of {made.error.n} predictions are off by more than {MISSED:.0%}")
    for cell, plan in sorted(missed, key=lambda pair: -abs(pair[1].error))[:SHOWN]:
        console.print(
            f"  speed {cell.speed:g}, {cell.link}: {plan.plan}: {plan.predicted_ms:.1f} ms predicted, "
            f"{plan.measured_ms:.1f} measured ({plan.error:+.0%})",
            highlight=False,
        )


def _errors(made: Result) -> Table:
    """How far predictions are off: cell by cell, mode by mode, and all."""
    table = Table(title="Predicted against measured latency", title_justify="left")
    for heading in ("", "plans", "median error", "90th percentile", "too long (+) or short (-)"):
        table.add_column(heading, justify="right")
    groups = {
        **{f"speed {cell.speed:g}, {cell.link}": spread(cell.plans) for cell in made.cells},
        **{f"mode {mode}": one for mode, one in made.error_by_mode.items()},
        "all": made.error,
    }
    for name, one in groups.items():
        table.add_row(name, str(one.n), f"{one.median:.1%}", f"{one.ninth_decile:.1%}", f"{one.bias:+.1%}")
    return table


def _choices(made: Result) -> Table:
    table = Table(title="The planner's choice, the best plan, and an agent that plans", title_justify="left")
    for heading in ("speed", "link", "limits", "chosen", "ms", "best", "ms", "regret", "agent, ms", "loss"):
        table.add_column(heading, justify="left" if heading in ("limits", "chosen", "best") else "right")
    for cell in made.cells:
        for one in cell.choosing:
            times = f"{one.chosen_ms:.1f}", one.best, f"{one.best_ms:.1f}", f"{one.regret:.1%}"
            agent = f"{one.auto_ms:.1f}", f"{one.auto_loss:+.1%}"
            table.add_row(f"{cell.speed:g}", cell.link, one.limits, one.chosen, *times, *agent)
    return table


if __name__ == "__main__":
    main()
