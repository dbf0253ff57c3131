"""`cutline learn`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from cutline.cli import options
from cutline.cli.fields import with_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from cutline.learning.comparison import Quality
    from cutline.learning.examples import Remembered
    from cutline.learning.learner import Learned, LearningProgress
    from cutline.models.export.make import ExportProgress

EPILOG = "Example: cutline learn --drafter my-drafter-hf --journal journal --out my-better-drafter"


class LearnOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline learn` is given."""

    drafter: Annotated[Path, "The Hugging Face folder that the drafter's bundle was exported from."]
    journal: Annotated[Path, "The journal of `cutline edge --journal`, with what the target answered."]
    out: Annotated[Path, "Folder for the new bundle; nothing may be there."]
    bundle: options.Bundle = None
    target: Annotated[Path | None, "The target's bundle or its name; without it that of the bundle, or the demo's."] = (
        None
    )
    journal_key_file: options.JournalKeyFile = None
    tenant: Annotated[str | None, "Learn from this tenant's answers alone; '' is whoever came without a name."] = None
    replay: Annotated[
        Path | None,
        'Questions that it is not to forget: lines of {"image": FILE, "question": TEXT}, with an "answer" where it is '
        "known, as of `cutline calibrate --data`; without it the demo's, for the demo's drafter.",
    ] = None
    cards: Annotated[int, "Cards of the demo's calibration split for that, six questions each."] = 200
    epochs: Annotated[int, "How often each answer is learnt."] = 4
    threads: options.Threads = None
    as_json: options.Json = False


@with_options
def learn(given: LearnOptions) -> None:
    """Teach a drafter what its target answered, and make a new bundle of it if that is better.

    One in five pictures is learnt nothing of: on the answers about those, and on questions that are not to be
    forgotten, the old drafter and the new one are compared. A new one that does not foresee more of the target's
    tokens, or loses more than one point of what it was not to forget, is refused with exit code 13, and nothing is
    made. It is not calibrated: `cutline calibrate` is the next step, and until then an agent drafts with it and keeps
    none of its answers.

    When it is interrupted, the same command goes on from where it was. Needs Cutline's extra `learn`.
    """
    import sys

    from rich.console import Console

    from cutline.cli.setting import open_drafter, open_journal_key, open_target_for, thread_count
    from cutline.errors import InputError
    from cutline.errors.extras import missing

    if given.epochs < 1 or given.cards < 1:
        raise InputError("--epochs and --cards are 1 or more")
    threads = thread_count(given.threads)
    drafter, key = open_drafter(given.bundle), open_journal_key(given.journal_key_file)
    target = open_target_for(given.target, given.bundle)
    if target is None:
        raise InputError("a drafter is exported for a target; give its bundle as --target")
    try:
        import torch

        from cutline.learning.distillation import DistillationPlan
        from cutline.learning.learner import JournalSource, Learner
    except ModuleNotFoundError as error:
        raise missing(f"learning needs {error.name}", "learn") from None

    torch.set_num_threads(threads)
    console = Console(stderr=True)
    memory = list(_memory(given))
    if not memory:
        console.print("Nothing keeps it from forgetting what it knew: give its calibration's questions as --replay.")
    with _shown(console) as tell:
        learner = Learner(
            drafter,
            target,
            given.drafter,
            memory=memory,
            plan=DistillationPlan(epochs=given.epochs),
            threads=threads,
            tell=tell,
        )
        made = learner.learn(JournalSource(folder=given.journal, key=key, tenant=given.tenant), given.out)
    if given.as_json:
        sys.stdout.buffer.write(msgspec.json.encode(made) + b"\n")
    else:
        _show(console, made)


def _memory(given: LearnOptions) -> Iterator[Remembered]:
    """The questions that are not to be forgotten. Raises InputError."""
    from cutline.cli.calibration.inputs import demo_sources, file_sources
    from cutline.core.request import Request
    from cutline.learning.examples import Remembered

    if given.replay is None and given.bundle is not None:
        return
    for source in demo_sources(given.cards) if given.replay is None else file_sources(given.replay):
        asked = source.asked()
        yield Remembered(Request.about(asked.image, asked.text), asked.answer)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[LearningProgress | ExportProgress], None]]:
    """What shows how far the work is: a bar a part, and a line for each step of the export."""
    from cutline.cli.terminal.time_left import TimeLeft
    from cutline.learning.learner import LearningProgress

    with TimeLeft(console) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(progress: LearningProgress | ExportProgress) -> None:
            if isinstance(progress, LearningProgress):
                if progress.part not in tasks:
                    tasks[progress.part] = shown.add_task(progress.part, completed=progress.done - 1)
                task = tasks[progress.part]
                described = ", ".join(text for text in (progress.part, progress.note) if text)
                shown.update(task, total=progress.total, description=described)
                shown.advance(task)
            elif progress.finished:
                console.print(f"{progress.step}: {progress.note}", highlight=False, soft_wrap=True)

        yield tell


def _show(console: Console, made: Learned) -> None:
    """What came of it, in words."""
    whose = ", ".join(tenant or "(no name)" for tenant in made.tenants)
    passed = {"torn": made.torn, "of another target": made.others, "unfit for the drafter": made.unfit}
    left_out = "".join(f", {count} {what}" for what, count in passed.items() if count)
    found = made.comparison
    lines = [
        f"learnt from {made.learnt} answers to {whose}{left_out}",
        f"the journal's answers that it has not seen: {_change(found.before, found.after)}",
    ]
    if found.memory_before is not None and found.memory_after is not None:
        lines.append(f"what it was not to forget: {_change(found.memory_before, found.memory_after)}")
    lines.append(f"{made.bundle}: drafter, identity {made.identity[:12]}; `cutline calibrate --bundle` is next")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _change(before: Quality, after: Quality) -> str:
    return (
        f"{after.foreseen:.1%} of tokens foreseen (before {before.foreseen:.1%}), {after.agreed:.1%} of "
        f"{after.questions} answers whole (before {before.agreed:.1%})"
    )
