"""`cutline calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from cutline.cli import options
from cutline.cli.fields import with_options

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cutline.cli.calibration.samples import Samples
    from cutline.core.agreement.measures import Measure
    from cutline.edge.generation.gate import Group
    from cutline.models.bundle import Bundle
    from cutline.models.prices import Prices

EPILOG = "Example: cutline calibrate --bundle my-drafter --target my-target --data questions.jsonl"

QUESTIONS_A_CARD = 6


class CalibrateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline calibrate` is given."""

    bundle: options.Bundle = None
    target: Annotated[
        Path | None, "The target's bundle, run here unless there is a --worker; without it, the demo's."
    ] = None
    worker: options.Worker = None
    keys: options.WorkerKeys
    encoder: Annotated[
        Path | None, "An encoder's bundle: find from which score on a frame shows --only-if, and nothing else."
    ] = None
    only_if: Annotated[str | None, "With --encoder: what frames are to show, as of `cutline watch --only-if`."] = None
    agree: Annotated[
        str,
        "How answers are compared: tokens, text, number, choice:ONE,OTHER, json, anls[:BAR], or a function of your own "
        "as FILE.py:function.",
    ] = "tokens"
    against: Annotated[
        str,
        "What the drafter's answers are held against: target, whose place an --upstream takes, or answers, which "
        "--data gives.",
    ] = "target"
    server: options.UpstreamOptions = options.UpstreamOptions()
    data: Annotated[
        Path | None,
        'Lines of {"image": FILE, "question": TEXT}, with an "answer" where it is known, and a "group" to '
        "count it with, or CSV with such columns; without it, the demo's. "
        'With --encoder of {"image": FILE, "shows": true}, or false.',
    ] = None
    groups: Annotated[
        list[str] | None,
        "Groups of requests to calibrate, by words of their names with commas between, such as 'one picture, first "
        "question'; give it again for more. Without it all; the others stay as they are.",
    ] = None
    samples: Annotated[int, "Questions to ask in each group, if there are as many."] = 600
    system: Annotated[
        list[str] | None,
        "A system turn that requests will have, in place of some ordinary ones; give it again for more.",
    ] = None
    risk: Annotated[float, "Kept answers may differ from those that count in this share."] = 0.05
    reserve: Annotated[
        float,
        "The part of --risk that is held back for requests that differ from the calibration's: thresholds are found "
        "for the rest.",
    ] = 0.0
    confidence: Annotated[float, "How sure that must be."] = 0.9
    alarm: Annotated[
        float,
        "Share of pictures like those asked about that may be taken for unfamiliar ones, of which no answer is kept; 0 "
        "looks at no picture.",
    ] = 0.02
    cards: Annotated[int, "Cards of the demo's calibration split, six questions each."] = 300
    price_cards: Annotated[
        int, "How many of them prices are measured on (of --data six lines each); 0 measures none."
    ] = 10
    price_cuts: Annotated[str | None, "Cuts to measure, with commas between; without it all."] = None
    threads: options.Threads = None
    timeout: Annotated[float, "Seconds to wait for an answer."] = 600.0
    as_json: options.Json = False


@with_options
def calibrate(given: CalibrateOptions) -> None:
    """Learn when a drafter's answer may stand without asking the target, and what each cut of the target costs.

    Asks the drafter and the target the same questions, as each group of requests has them: the picture or the text
    first, with and without a system turn, as second and third questions, about two pictures. Writes into the drafter's
    bundle the confidence above which its answers agree with the target's as often as --risk and --confidence ask, group
    by group; an answer to a request of any other group is never kept, nor is one about a picture that is unlike those
    asked about. Then asks the target at every cut in
    every wire format, and writes into its bundle what went up and how many answers stayed the same; with --bundle that
    needs --target.

    What agreeing is, --agree says. In the target's place may be an --upstream: the gate then keeps answers before
    that model alone. With --against answers those in the data count, and nobody else is asked for them.

    When it is interrupted, the same command goes on with the answers that it has, which lie in the drafter's bundle
    until the calibration is there.

    With --encoder and --only-if it finds the threshold of `cutline watch --only-if` instead, on labelled frames: the
    highest that misses no more of what shows it than --risk, as sure as --confidence, and writes it into the encoder's
    bundle.
    """
    import asyncio
    import os
    import sys
    from contextlib import ExitStack
    from functools import partial

    from rich.console import Console

    from cutline.cli.calibration import pricing
    from cutline.cli.calibration.answers import KeptAnswers, check_timeout
    from cutline.cli.calibration.inputs import demo_sources, file_sources
    from cutline.cli.calibration.pictures import check_alarm, familiar_pictures
    from cutline.cli.calibration.pricing import ways
    from cutline.cli.calibration.samples import SYSTEMS, chosen_groups, conversations, sampled
    from cutline.cli.process.children import worker_process
    from cutline.cli.setting import (
        open_drafter,
        open_keys,
        open_target,
        open_target_for,
        open_upstream,
        thread_count,
        upstream_key,
    )
    from cutline.cli.terminal.gate_view import pictures_told, populations_of, show_gate
    from cutline.cli.terminal.time_left import TimeLeft
    from cutline.core.storage.journal import open_journal
    from cutline.edge.agent import MAX_NOTICE, Agent, AgentSettings
    from cutline.edge.generation.gate import Gate, calibrate_gate, save_gate
    from cutline.errors import InputError, ModelMismatch
    from cutline.models.bundle import JOURNAL, write_calibration

    if not (0 < given.risk < 1 and 0 < given.confidence < 1):
        raise InputError("--risk and --confidence are shares between 0 and 1")
    if given.encoder is not None or given.only_if is not None:
        _calibrate_scene(given)
        return
    if not 0 <= given.reserve < given.risk:
        raise InputError(f"--reserve is {given.reserve}; give a share from 0 to less than --risk, {given.risk}")
    if given.cards < 1:
        raise InputError(f"--cards is {given.cards}; give 1 or more")
    if given.samples < 1:
        raise InputError(f"--samples is {given.samples}; give 1 or more")
    if given.price_cards < 0:
        raise InputError(f"--price-cards is {given.price_cards}; give 0 or more")
    check_timeout(given.timeout)
    check_alarm(given.alarm)
    measure, against, known = _compared(given)
    wanted = chosen_groups(given.groups or (), known=known)
    key = upstream_key(given.server, workers=given.worker is not None)
    drafter, keys = open_drafter(given.bundle), open_keys(given.keys)
    wants_prices = given.price_cards > 0 and given.server.upstream is None
    priced = open_target_for(given.target, given.bundle) if wants_prices else None
    for opened, option in ((drafter, "--bundle"), *([(priced, "--target")] if priced else [])):
        if not os.access(opened.path, os.W_OK):
            raise InputError(f"{opened.path} cannot be written to; copy the bundle and give the copy as {option}")
    if priced is not None and priced.manifest.identity != drafter.manifest.target:
        raise ModelMismatch(f"{drafter.path} drafts for another target than {priced.path}; give its own as --target")
    cuts = _priced_cuts(priced, given.price_cuts) if priced else ()
    asked = list(demo_sources(given.cards) if given.data is None else file_sources(given.data))
    if not asked:
        raise InputError("there is nothing to calibrate on: give at least one question")
    talks = list(conversations(asked, wanted, count=given.samples, systems=given.system or SYSTEMS, known=known))
    sources = asked[: given.price_cards * QUESTIONS_A_CARD]
    console = Console(stderr=True)
    with ExitStack() as stack:
        # The gate changes no answer that is asked for, so what was kept for another --risk is as good.
        inputs = f"{drafter.manifest.identity} {given.server.upstream or drafter.manifest.target} {against}"
        journal = stack.enter_context(open_journal(drafter.path / JOURNAL, inputs=inputs))
        if journal.found:
            console.print(f"going on with {journal.found} answers of an earlier attempt", highlight=False)
        worker = given.worker
        if worker is None and given.server.upstream is None and (priced is not None or not known):
            worker = stack.enter_context(worker_process(open_target(given.target).path))
        progress = stack.enter_context(TimeLeft(console))
        count = thread_count(given.threads)
        # Nobody waits for these answers, and one that is lost ends it all: a busy machine is given time.
        open_agent = partial(Agent, drafter, worker=worker, keys=keys, threads=count, notice=MAX_NOTICE)

        def kept(agent: Agent, part: str) -> KeptAnswers:
            return KeptAnswers(agent.answer, journal, part=part, timeout=given.timeout)

        async def run() -> tuple[Samples, Prices | None]:
            settings = AgentSettings(fresh=True, upstream=open_upstream(given.server, key))
            async with open_agent(settings=settings) as agent:
                track = progress.add_task("asking both", total=len(talks))
                asking = kept(agent, "gate")
                found = await sampled(asking, talks, wanted, measure=measure, advance=lambda: progress.advance(track))
            if priced is None:
                return found, None
            priced_on = [source.asked() for source in sources]
            total = len(priced_on) * sum(1 for _ in ways(cuts))
            track = progress.add_task(f"asking the target at {len(cuts)} cuts", total=total)
            prices = await pricing.measure(
                partial(open_agent, target=priced, settings=settings),
                cuts=cuts,
                asked=priced_on,
                kept=partial(kept, part="prices"),
                advance=lambda: progress.advance(track),
            )
            return found, prices

        found, prices = asyncio.run(run())
        calibrated = calibrate_gate(
            found.found,
            wanted,
            risk=given.risk,
            reserve=given.reserve,
            confidence=given.confidence,
            agree=measure.name,
            against=against,
        )
        pictures = familiar_pictures(drafter, asked, alarm=given.alarm, threads=count)
        gate = Gate({**_others(drafter, wanted), **calibrated.groups}, pictures)
        save_gate(drafter, gate)
        if priced is not None and prices is not None:
            prices = _with_leaks(priced, prices)
            write_calibration(priced, prices)
        journal.finish()
    if given.as_json:
        report = msgspec.to_builtins(Gate(gate.groups)) | {
            "prices": prices,
            "populations": populations_of(calibrated),
            "alarm": None if pictures is None else pictures.alarm,
        }
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        return
    console.print(f"{drafter.path}: the gate, by groups of requests", highlight=False, soft_wrap=True)
    show_gate(console, calibrated)
    console.print(f"  {pictures_told(pictures)}", highlight=False, soft_wrap=True)
    if found.left_out:
        console.print(f"{found.left_out} conversations did not fit the models' context, and ended there")
    if priced is not None and prices is not None:
        alike = sum(price.answers == 1 for price in prices.prices)
        console.print(
            f"{priced.path}: {alike} of {len(prices.prices)} ways to cut it changed no answer to {prices.questions} "
            "questions; `cutline bundle show` has the prices"
        )
    elif wants_prices:
        console.print("No prices were measured: give the target's bundle as --target for them.")


def _compared(given: CalibrateOptions) -> tuple[Measure, str, bool]:
    """The measure, what answers are held against by it, and whether those are known. Raises InputError."""
    from cutline.cli.own_measure import open_measure
    from cutline.edge.generation.gate import ANSWERS, TARGET, upstream_named
    from cutline.errors import InputError

    measure, upstream = open_measure(given.agree), given.server.upstream
    if upstream is not None and given.target is not None:
        raise InputError("--target is what prices are measured on, and no --upstream has any; leave out one of them")
    if given.against not in (TARGET, ANSWERS):
        raise InputError(f"--against is {given.against[:40]!r}; give {TARGET} or {ANSWERS}")
    known = given.against == ANSWERS
    if known and upstream is not None:
        raise InputError("--against answers asks no upstream; leave out one or the other")
    if known and given.data is None:
        raise InputError("--against answers holds the drafter to the answers in --data; give that")
    if measure.of_tokens and (known or upstream is not None):
        raise InputError("only the target's answers have its tokens; give another --agree, such as text")
    return measure, given.against if upstream is None else upstream_named(given.server.upstream_model), known


def _calibrate_scene(given: CalibrateOptions) -> None:
    """Find the threshold of a filter of frames. Raises InputError, BundleError, StorageError."""
    from rich.console import Console

    from cutline.cli.calibration.scenes import calibrate_frames, show_threshold
    from cutline.cli.setting import thread_count
    from cutline.edge.inference.encoder import Encoder
    from cutline.errors import InputError
    from cutline.models.hub.library import find_bundle

    if given.encoder is None or given.only_if is None or given.data is None:
        raise InputError("a filter of frames is calibrated with all three of --encoder, --only-if and --data")
    taken = {name: getattr(given, name) for name in ("encoder", "only_if", "data", "risk", "confidence", "threads")}
    if msgspec.structs.replace(CalibrateOptions(**taken, keys=given.keys), as_json=given.as_json) != given:
        raise InputError("--encoder takes --only-if, --data, --risk, --confidence, --threads and --json alone")
    console = Console(stderr=True)
    encoder = Encoder(find_bundle(given.encoder, "encoder"), threads=thread_count(given.threads))
    found = calibrate_frames(
        encoder, given.only_if, given.data, risk=given.risk, confidence=given.confidence, console=console
    )
    show_threshold(given.only_if, found, as_json=given.as_json, console=console)


def _others(drafter: Bundle, groups: Collection[str]) -> Mapping[str, Group]:
    """What the drafter's gate does in other groups than these."""
    from cutline.edge.generation.gate import open_gate
    from cutline.errors import BundleError

    if drafter.manifest.calibration is None:
        return {}
    try:
        before = open_gate(drafter).groups
    except BundleError:  # what does not read is what is calibrated anew
        return {}
    return {name: group for name, group in before.items() if name not in groups}


def _priced_cuts(target: Bundle, named: str | None) -> tuple[str, ...]:
    """The cuts to measure, in the order of the layer line. Raises InputError."""
    from cutline.edge.inference.target_prefix import device_cuts
    from cutline.errors import InputError

    cuts = ("image", *device_cuts(target.manifest))
    if named is None:
        return cuts
    chosen = [name.strip() for name in named.split(",")]
    for name in chosen:
        if name not in cuts:
            raise InputError(f"--price-cuts: {target.path} cannot be cut at {name[:40]!r}; cuts: {', '.join(cuts)}")
    return tuple(cut for cut in cuts if cut in chosen)


def _with_leaks(target: Bundle, prices: Prices) -> Prices:
    """The prices with the leaks that the bundle has: those were measured apart, and are the model's as before."""
    from msgspec.structs import replace

    from cutline.errors import BundleError
    from cutline.models.prices import open_prices

    try:
        before = open_prices(target)
    except BundleError:  # what does not read is what is measured anew
        before = None
    return prices if before is None else replace(prices, leaks=before.leaks)
