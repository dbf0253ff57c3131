"""`cutline demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress

    from cutline.core.storage.journal import Journal
    from cutline.demo.reference import Reference
    from cutline.demo.requests import CardRequest
    from cutline.demo.results import DemoResult, Outcome
    from cutline.devices.link import LinkProfile
    from cutline.models.bundle import Bundle

EPILOG = "Example: cutline demo --images 20 --link 3g --report report.html"

SHOWN = 4  # cards in the terminal
MARGIN = 30.0  # seconds that an agent has beyond an answer's own, to say that these are over


def demo(
    images: Annotated[int, typer.Option(help="Cards shown; six questions each, in every mode.")] = 8,
    link: Annotated[str, typer.Option(help="Name of a link profile, or a TOML file of one.")] = "4g",
    seed: Annotated[int, typer.Option(help="Which cards and questions.")] = 0,
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("cutline-demo.html"),
    target: Annotated[Path | None, typer.Option(help="Target's bundle; without it, the demo's.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="Drafter's bundle; without it, the demo's.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 60.0,
    as_json: options.Json = False,
) -> None:
    """Show the whole thing at work on this machine.

    Starts a worker and an agent as processes of their own with an emulated link between them, asks held-out questions
    in every mode, and compares each answer with the unsplit target's. When it is interrupted, the same command goes on
    with the answers that it has, which lie beside the report until that is written.
    """
    import hashlib
    import sys
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    import msgspec
    from rich.console import Console

    from cutline.cli.calibration.answers import check_timeout
    from cutline.cli.setting import open_drafter, open_target
    from cutline.cli.terminal.time_left import TimeLeft
    from cutline.core.storage.journal import open_journal
    from cutline.demo.cards import Split
    from cutline.demo.requests import requests
    from cutline.devices.link import load_link
    from cutline.errors import InputError
    from cutline.errors.extras import missing

    try:  # now, rather than after the work
        import matplotlib  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(f"the demo needs {error.name}", "demo") from None
    if images < 1:
        raise InputError(f"--images is {images}; give 1 or more")
    if seed < 0:
        raise InputError(f"--seed is {seed}; give 0 or more")
    if not report.absolute().parent.is_dir():
        raise InputError(f"--report {report}: there is no such folder")
    check_timeout(timeout)
    profile = load_link(link)
    console = Console(stderr=as_json)
    asked = list(requests(Split.EVALUATION, images, seed))
    bundles = (open_target(target), open_drafter(drafter))
    made_from = msgspec.json.encode([*(one.manifest for one in bundles), profile], order="deterministic")
    inputs = hashlib.sha256(made_from).hexdigest()
    with ExitStack() as stack:
        # Beside a terminal, a pipe or /dev/null nothing can be kept.
        keeps = report.is_file() or not report.exists()
        folder = report.parent if keeps else Path(stack.enter_context(TemporaryDirectory()))
        journal = stack.enter_context(open_journal(folder / f".{report.name}.jsonl", inputs=inputs))
        if journal.found:
            console.print(f"going on with {journal.found} answers of an earlier attempt", highlight=False)
        with TimeLeft(console) as progress:
            outcomes = _outcomes(asked, *bundles, link=profile, progress=progress, journal=journal, timeout=timeout)
        result = _result(outcomes, *bundles, link=profile.name, images=images, seed=seed)
        if as_json:
            sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        else:
            _show(console, result, outcomes)
        _write_report(report, result, outcomes)
        journal.finish()
    console.print(f"The report with plots and pictures: {report}")


def _outcomes(
    asked: Sequence[CardRequest],
    target: Bundle,
    drafter: Bundle,
    *,
    link: LinkProfile,
    progress: Progress,
    journal: Journal,
    timeout: float,
) -> list[Outcome]:
    """Every request in every mode, beside the unsplit target's answer."""
    import asyncio
    from contextlib import AsyncExitStack
    from functools import partial

    import httpx
    import msgspec

    from cutline.cli.calibration.answers import KeptAnswers
    from cutline.cli.process.children import agent_process, worker_process
    from cutline.core.request import Mode, Request
    from cutline.demo.reference import Reference
    from cutline.demo.results import SHOWN_MODES, Outcome
    from cutline.devices.emulator import LinkEmulator
    from cutline.edge.api.client import ask_over
    from cutline.protos.channel.address import parse_address

    reference = Reference(target)
    track = progress.add_task("the target, unsplit, for comparison", total=len(asked))
    truths = []
    for request in asked:
        truths.append(_truth(reference, request, journal))
        progress.advance(track)

    async def run() -> list[Outcome]:
        outcomes = []
        async with AsyncExitStack() as stack:
            starting = progress.add_task("starting a worker, a link and an agent", total=None)
            worker = await asyncio.to_thread(stack.enter_context, worker_process(target.path))
            emulator = await stack.enter_async_context(LinkEmulator(link, target=parse_address(worker)))
            agent = await asyncio.to_thread(
                stack.enter_context, agent_process(drafter.path, emulator.address, "--fresh")
            )
            opening = httpx.AsyncClient(base_url=f"http://{agent}", timeout=timeout + MARGIN, trust_env=False)
            client = await stack.enter_async_context(opening)

            answers = KeptAnswers(partial(ask_over, client), journal, part="asked", timeout=timeout)

            def question(request: CardRequest, mode: Mode) -> Request:
                return Request.about(request.image, request.question.text, mode=mode)

            for mode in SHOWN_MODES:  # the first of each opens the connection and warms the models
                await ask_over(client, msgspec.structs.replace(question(asked[0], mode), timeout=timeout))
            progress.update(starting, total=1, completed=1)
            asking = progress.add_task(f"asking over {link.name}, in every mode", total=len(asked) * len(SHOWN_MODES))
            for request, ids in zip(asked, truths, strict=True):
                for mode in SHOWN_MODES:
                    answer = await answers.answer(question(request, mode))
                    outcomes.append(Outcome(request, answer, reference.text(ids), ids))
                    progress.advance(asking)
        return outcomes

    return asyncio.run(run())


def _truth(reference: Reference, request: CardRequest, journal: Journal) -> tuple[int, ...]:
    """The unsplit target's answer to a request, as it is kept, or else made and kept."""
    import hashlib

    import msgspec

    key = f"unsplit {hashlib.sha256(request.image).hexdigest()} {request.question.text}"
    if (kept := journal.get(key)) is None:
        journal.put(key, reference.answer(request.image, request.question.text))
        kept = journal.get(key) or b""
    return msgspec.json.decode(kept, type=tuple[int, ...])


def _result(
    outcomes: Sequence[Outcome], target: Bundle, drafter: Bundle, *, link: str, images: int, seed: int
) -> DemoResult:
    from cutline.core.request import Mode
    from cutline.demo.results import SHOWN_MODES, DemoResult, mode_result, model_result

    by_mode = {mode: [outcome for outcome in outcomes if outcome.answer.mode is mode] for mode in SHOWN_MODES}
    alone = by_mode[Mode.EDGE]
    return DemoResult(
        modes=[mode_result(mode, found) for mode, found in by_mode.items()],
        target=model_result(
            target.manifest.name, target.manifest.identity, ((one.request, one.target_text) for one in alone)
        ),
        drafter=model_result(
            drafter.manifest.name, drafter.manifest.identity, ((one.request, one.answer.text) for one in alone)
        ),
        link=link,
        images=images,
        seed=seed,
    )


def _show(console: Console, result: DemoResult, outcomes: Sequence[Outcome]) -> None:
    from rich.table import Table
    from rich.text import Text

    from cutline.cli.terminal.provenance import coloured
    from cutline.cli.terminal.tables import show_table
    from cutline.core.request import Mode
    from cutline.demo.results import FIGURES

    table = Table(title=f"{result.images} cards, six questions each, over {result.link}", title_justify="left")
    table.add_column("a request")
    for mode in result.modes:
        table.add_column(mode.mode, justify="right")
    for name, figure in FIGURES.items():
        table.add_row(name, *(figure(mode) for mode in result.modes))
    show_table(console, table)
    console.print(
        Text.assemble(
            "Tokens: ",
            ("this device alone", "yellow"),
            ", ",
            ("drafted here, confirmed", "green"),
            ", ",
            ("cloud", "blue"),
        )
    )
    telling = [one for one in outcomes if one.answer.mode is Mode.AUTO]
    # Escalated and mixed answers show more than those of one colour.
    telling.sort(key=lambda one: (-len({token.source for token in one.answer.tokens}), not one.offloaded))
    for outcome in telling[:SHOWN]:
        shown = ", ".join(f"{digit.colour} {digit.value}" for digit in outcome.request.card.digits)
        console.print(f"  [dim]card: {shown}[/dim]  {outcome.request.question.text}", highlight=False)
        console.print(Text("    ").append_text(coloured(outcome.answer.tokens)))


def _write_report(path: Path, result: DemoResult, outcomes: Sequence[Outcome]) -> None:
    from cutline.core.storage.files import write_file
    from cutline.demo.report import render

    write_file(path, render(result, outcomes).encode())
