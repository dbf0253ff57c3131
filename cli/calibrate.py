"""`cutline calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cutline.edge.agent import Agent
    from cutline.edge.gate import Gate

EPILOG = "Example: cutline calibrate --bundle my-drafter --target my-target --data questions.jsonl"

Asked = tuple[bytes, str]  # an image file and a question


def calibrate(
    bundle: options.Bundle = None,
    target: Annotated[
        Path | None, typer.Option(help="The target's bundle, run here; without it, the demo's.", show_default=False)
    ] = None,
    worker: options.Worker = None,
    data: Annotated[
        Path | None,
        typer.Option(help='Lines of {"image": FILE, "question": TEXT}; without it, the demo\'s.', show_default=False),
    ] = None,
    risk: Annotated[float, typer.Option(help="Kept answers may differ from the target's in this share.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure that must be.")] = 0.9,
    cards: Annotated[int, typer.Option(help="Cards of the demo's calibration split, six questions each.")] = 300,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Learn when a drafter's answer may stand without asking the target.

    Asks the drafter and the target the same questions, and writes into the drafter's bundle the confidence above which
    its answers agree with the target's as often as --risk and --confidence ask.
    """
    import asyncio
    import os
    import sys
    from contextlib import ExitStack

    import msgspec
    from rich.console import Console
    from rich.progress import Progress

    from cutline.cli.processes import worker_process
    from cutline.cli.setting import open_drafter, open_target, thread_count
    from cutline.edge.agent import Agent
    from cutline.edge.gate import save_gate
    from cutline.errors import InputError

    if not (0 < risk < 1 and 0 < confidence < 1):
        raise InputError("--risk and --confidence are shares between 0 and 1")
    if cards < 1:
        raise InputError(f"--cards is {cards}; give 1 or more")
    if worker is not None and target is not None:
        raise InputError("give --worker, or --target to run one here, not both")
    drafter = open_drafter(bundle)
    if not os.access(drafter.path, os.W_OK):
        raise InputError(f"{drafter.path} cannot be written to; copy the bundle and give the copy as --bundle")
    asked = list(_demo_questions(cards) if data is None else _read(data))
    if not asked:
        raise InputError("there is nothing to calibrate on: give at least one question")
    console = Console(stderr=True)
    with ExitStack() as stack:
        if worker is None:
            worker = stack.enter_context(worker_process(open_target(target).path))
        progress = stack.enter_context(Progress(console=console))

        async def run() -> Gate:
            async with Agent(drafter, worker=worker, threads=thread_count(threads)) as agent:
                return await _calibrated(agent, progress.track(asked, description="asking both"), risk, confidence)

        gate = asyncio.run(run())
    save_gate(drafter, gate)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(gate) + b"\n")
    elif gate.kept:
        console.print(
            f"{drafter.path}: keeps answers of confidence {gate.threshold:.4f} and more: "
            f"{gate.kept} of {gate.requests}, of which {gate.disagreed} differ from the target's"
        )
    else:
        console.print(f"{drafter.path}: no threshold keeps the risk at {risk}; every answer will be verified")


async def _calibrated(agent: Agent, asked: Iterable[Asked], risk: float, confidence: float) -> Gate:
    from cutline.edge.answer import Mode, Question
    from cutline.edge.gate import calibrate_gate

    confidences, agreed = [], []
    for image, text in asked:
        ours = await agent.answer(Question(image=image, text=text, mode=Mode.EDGE))
        theirs = await agent.answer(Question(image=image, text=text, mode=Mode.CLOUD))
        confidences.append(ours.confidence or 0.0)
        agreed.append([token.id for token in ours.tokens] == [token.id for token in theirs.tokens])
    return calibrate_gate(confidences, agreed, risk=risk, confidence=confidence)


def _demo_questions(cards: int) -> Iterable[Asked]:
    from cutline.demo.cards import Split
    from cutline.demo.requests import requests

    for request in requests(Split.CALIBRATION, cards, seed=0):
        yield request.image, request.question.text


def _read(data: Path) -> Iterable[Asked]:
    import msgspec

    from cutline.errors import InputError

    class Line(msgspec.Struct):
        image: str
        question: str

    try:
        lines = [msgspec.json.decode(line, type=Line) for line in data.read_bytes().splitlines() if line.strip()]
        for line in lines:
            yield (data.parent / line.image).read_bytes(), line.question
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise InputError(f'{data} has a line that is not {{"image": FILE, "question": TEXT}}: {error}') from None
