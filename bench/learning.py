"""What a drafter learns from a shifted camera: `python -m cutline.bench.learning`, some minutes.

The demo's agent answers questions about cards as a shifted camera sees them, and keeps a journal of what the target
said. The demo's drafter learns from that, and is asked about other such cards and about cards as it knew them before.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cutline.bench.drafter_folder import write_folder
from cutline.bench.shift import SHIFTS, Shift
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.escalations.folder import EscalationJournal
from cutline.core.escalations.recorder import EscalationRecorder
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.learning.comparison import Quality, quality_of
from cutline.learning.distillation import DistillationPlan
from cutline.learning.examples import Remembered, read_examples
from cutline.learning.learner import JournalSource, Learner, LearningProgress
from cutline.models.bundle import Bundle
from cutline.models.export.make import ExportProgress


def asked(split: Split, count: int, shift: Shift, seed: int) -> Iterator[Request]:
    """A question about each of so many cards of a split, as the shifted camera sees them: of all kinds alike."""
    rng, questions = np.random.default_rng(seed), list(requests(split, count, seed=seed))
    each = len(questions) // count
    for index in range(count):
        one, file = questions[index * each + index % each], io.BytesIO()
        shift(Image.open(io.BytesIO(one.image)).convert("RGB"), rng).save(file, "PNG")
        yield Request.about(file.getvalue(), one.question.text, mode=Mode.CLOUD)


async def gather(questions: Iterator[Request], journal: Path) -> None:
    """Have the target answer, and keep a journal of that."""
    target = Bundle.open(TARGET)
    settings = AgentSettings(fresh=True, journal=EscalationRecorder(EscalationJournal(journal, limit=1 << 30)))
    async with (
        serve(target, WorkerOptions(slots=4, context=target.manifest.decoder.context)) as address,
        Agent(Bundle.open(DRAFTER), worker=address, threads=1, settings=settings) as agent,
    ):
        places = asyncio.Semaphore(4)

        async def ask(question: Request) -> None:
            async with places:
                await agent.answer(question)

        await asyncio.gather(*(ask(question) for question in questions))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--shift", choices=[name for name in SHIFTS if name != "as calibrated"], default="in yellow light"
    )
    parser.add_argument("--questions", type=int, default=2000, help="that are learnt from, or held out")
    parser.add_argument("--tested", type=int, default=600, help="questions, of each kind, that the table is of")
    parser.add_argument("--cards", type=int, default=200, help="that it is not to forget")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True, help="folder for journals and bundles; goes on if stopped")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, work = Console(width=120), args.work
    shift, plain = SHIFTS[args.shift], SHIFTS["as calibrated"]
    journals = {
        "learnt": asked(Split.CALIBRATION, args.questions, shift, 21),
        "shifted": asked(Split.EVALUATION, args.tested, shift, 22),
        "as before": asked(Split.EVALUATION, args.tested, plain, 23),
    }
    for name, questions in journals.items():
        if not (work / name).is_dir():
            draft = work / f"{name}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            asyncio.run(gather(questions, draft))
            draft.rename(work / name)
    if not (work / "folder").is_dir():
        write_folder(work / "folder")

    def tell(progress: LearningProgress | ExportProgress) -> None:
        if isinstance(progress, LearningProgress) and progress.done % 50 == 0:
            console.print(f"{progress.part}: {progress.done} of {progress.total} {progress.note}")

    drafter, out = Bundle.open(DRAFTER), work / "better"
    memory = [
        Remembered(Request.about(one.image, one.question.text), one.question.answer)
        for one in requests(Split.CALIBRATION, args.cards, seed=0)
    ]
    if not out.exists():
        plan = DistillationPlan(epochs=args.epochs)
        learner = Learner(drafter, Bundle.open(TARGET), work / "folder", memory=memory, plan=plan, tell=tell)
        learner.learn(JournalSource(folder=work / "learnt"), out)
    table = Table(title=f"{args.questions} questions of a camera that is {args.shift}")
    for heading in ("cards", "", "tokens foreseen", "whole answers", "kept at 5%"):
        table.add_column(heading, justify="left" if heading == "cards" else "right")
    for name in ("shifted", "as before"):
        examples = read_examples(work / name, None, drafter.manifest).examples
        before, after = (quality_of(one, examples, threads=1) for one in (drafter, Bundle.open(out)))
        row(table, name, "before", before)
        row(table, "", "after", after)
        closed = (after.foreseen - before.foreseen) / (1 - before.foreseen)
        kept = (after.kept - before.kept) / (1 - before.kept)
        table.add_row("", "of the gap", f"{closed:.0%}", "", f"{kept:.0%}")
    console.print(table)


def row(table: Table, name: str, when: str, found: Quality) -> None:
    """Add a line."""
    table.add_row(name, when, f"{found.foreseen:.1%}", f"{found.agreed:.1%}", f"{found.kept:.1%}")


if __name__ == "__main__":
    main()
