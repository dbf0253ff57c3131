"""`cutline eval`."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import with_options
from cutline.cli.options import AgentOptions, Reuse, WorkerKeys
from cutline.core.request import Mode, Request
from cutline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, ExitStack

    from rich.console import Console

    from cutline.edge.generation.result import Answer
    from cutline.evaluation.asking import Ask
    from cutline.evaluation.questions import QuestionRow
    from cutline.evaluation.records import RecordFile
    from cutline.evaluation.report import Evaluation
    from cutline.protos.channel.credentials import AgentKeys

    Respondent = AbstractAsyncContextManager[Ask]

EPILOG = "Example: cutline eval answers.csv --modes edge,cloud,auto --report eval.html"

SHOWN = 10  # questions that could not be asked
QUESTIONS_A_CARD = 6


class EvalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline eval` is given."""

    data: Annotated[
        Path | None,
        typer.Argument(
            help='Lines of {"image": FILE, "question": TEXT, "answer": ..., "group": ...}, or CSV with such columns; '
            "without it, the demo's cards."
        ),
    ] = None
    modes: Annotated[str, "Modes to ask in, with commas between: edge, cloud, draft, auto."] = "edge,cloud,draft,auto"
    score: Annotated[
        str,
        "How right an answer is: exact, text, vqa, anls[:BAR], number, choice:ONE,OTHER, json, bleu, cider, iou[:BAR].",
    ] = "text"
    against: Annotated[Path | None, "Other questions, asked likewise: by how much the score drops to them."] = None
    limit_ms: Annotated[float | None, "Tell which share of answers took so long at most."] = None
    agent: Annotated[str | None, "URL of a running agent to ask, instead of answering here."] = None
    opening: AgentOptions
    cards: Annotated[int, "Without DATA: cards of the demo's evaluation split, six questions each."] = 50
    max_tokens: Annotated[int, "Tokens of an answer, at most."] = 64
    timeout: Annotated[float, "Seconds to wait for an answer."] = 60.0
    out: Annotated[
        Path | None, "Where each answer is kept, to go on with or to score again; without it, beside DATA."
    ] = None
    report: Annotated[Path | None, "Also write a page with plots here."] = None
    as_json: options.Json = False


@with_options
def evaluate(given: EvalOptions) -> None:
    """Ask your own questions in every mode, and say how right, how soon and at what cost the answers are.

    Every answer is kept in a file beside the questions: interrupted, the same command goes on where it was, and with
    another --score it asks nothing again. Questions that cannot be asked are named and left out. Where a mode needs a
    worker, and neither --worker nor --upstream is given, one of the target runs on this machine.
    """
    import sys
    from contextlib import ExitStack

    from rich.console import Console

    from cutline.cli.calibration.answers import check_timeout
    from cutline.core.storage.files import write_file
    from cutline.evaluation.report import drops_of, render
    from cutline.evaluation.scores import score_named

    modes = _modes(given.modes)
    score_named(given.score)
    check_timeout(given.timeout)
    if given.cards < 1:
        raise InputError(f"--cards is {given.cards}; give 1 or more")
    if given.report is not None:
        _check_plots()
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        respondent = _respondent(given, modes, stack)
        result = _evaluated(given.data, given.out, given, respondent, console)
        if given.against is not None:
            other = _evaluated(given.against, None, given, respondent, console)
            drops = drops_of(result.modes, other.modes)
            result = msgspec.structs.replace(result, against=other.modes, drops=drops)
    if given.report is not None:
        title = f"{'The demo' if given.data is None else given.data.name}, by {result.score}"
        write_file(given.report, render(result, title=title).encode())
    if given.as_json:
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        return
    _show(result)
    if given.report is not None:
        console.print(f"The report with plots: {given.report}", soft_wrap=True)


def _modes(text: str) -> tuple[Mode, ...]:
    """Raises InputError."""
    able = (Mode.EDGE, Mode.CLOUD, Mode.DRAFT, Mode.AUTO)
    named = dict.fromkeys(name.strip() for name in text.split(","))
    if unknown := [name for name in named if name not in able]:
        raise InputError(f"--modes: there is no mode {unknown[0][:40]!r} here; give some of {', '.join(able)}")
    return tuple(map(Mode, named))


def _check_plots() -> None:
    """Check that plots can be drawn, now rather than after the work. Raises InputError."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        from cutline.errors.extras import missing

        raise missing("--report draws with matplotlib", "demo") from None


def _respondent(given: EvalOptions, modes: Sequence[Mode], stack: ExitStack) -> Callable[[], Respondent]:
    """What opens who is asked. Raises InputError, BundleError, WorkerUnavailable."""
    from cutline.cli.setting import agent_opener, open_keys, open_target

    opening = given.opening
    if given.agent is not None:
        if msgspec.structs.replace(opening, keys=WorkerKeys(), worker=opening.worker or None) != AgentOptions():
            raise InputError("--agent asks a running agent, which has its own bundles, workers and all that opens one")
        url, keys = given.agent, open_keys(opening.keys)
        return lambda: nullcontext(partial(_ask_agent, url, keys))
    alone = set(modes) == {Mode.EDGE} or opening.offline
    if not (alone or opening.worker or opening.directory or opening.server.upstream):
        from cutline.cli.process.children import worker_process

        worker = stack.enter_context(worker_process(open_target(opening.target).path))
        opening = msgspec.structs.replace(opening, worker=[worker])
    opener = agent_opener(opening, Reuse(fresh=True), cuts=False)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Ask]:
        async with opener() as agent:
            yield agent.answer

    return opened


async def _ask_agent(url: str, keys: AgentKeys, question: Request) -> Answer:
    from cutline.edge.api.client import ask_agent

    return await ask_agent(url, question, keys)


def _evaluated(
    data: Path | None,
    out: Path | None,
    given: EvalOptions,
    respondent: Callable[[], Respondent],
    console: Console,
) -> Evaluation:
    """The figures of one file of questions, of which those are asked that were not before. Raises CutlineError."""
    import asyncio

    from cutline.cli.terminal.time_left import TimeLeft
    from cutline.evaluation.asking import ask_all
    from cutline.evaluation.figures import figures_of
    from cutline.evaluation.questions import read_rows, survey
    from cutline.evaluation.records import open_records
    from cutline.evaluation.report import Evaluation
    from cutline.evaluation.scores import score_named

    modes = _modes(given.modes)
    digest, lines = (f"demo {given.cards}", given.cards * QUESTIONS_A_CARD) if data is None else survey(data)
    name = f"{'cutline-demo' if data is None else data.name}.answers.jsonl"
    path = out or (Path(name) if data is None else data.with_name(name))
    with open_records(path, of=f"{digest} {given.max_tokens} {_whose(given)}", modes=modes) as records:
        if records.last:
            console.print(f"going on behind line {records.last}: {path} has what was answered", soft_wrap=True)

        async def ask(progress: TimeLeft) -> None:
            track = progress.add_task("asking", total=lines, completed=records.last)
            async with respondent() as answer:
                await ask_all(
                    _demo_rows(given.cards) if data is None else read_rows(data),
                    modes,
                    answer,
                    records,
                    make=partial(_question, given),
                    advance=lambda number: progress.advance(track, number - progress.tasks[track].completed),
                )

        with TimeLeft(console) as progress:
            asyncio.run(ask(progress))
        skipped = _tell_skipped(console, "question" if data is None else f"{data} line", records)
        score = score_named(given.score, lambda: (some[0].answers for some in records.every() if some[0].answers))
        figures = figures_of(records.every(), modes, score, limit_ms=given.limit_ms)
    if not figures:
        raise InputError(f"{data} has no question that could be asked; {path} says why of each")
    count = max(one.n for one in figures.values())
    return Evaluation(questions=count, skipped=skipped, score=score.name, limit_ms=given.limit_ms, modes=figures)


def _question(given: EvalOptions, image: bytes, text: str, mode: Mode) -> Request:
    return Request.about(image, text, mode=mode, max_tokens=given.max_tokens, timeout=given.timeout, store=False)


def _demo_rows(cards: int) -> Iterator[QuestionRow]:
    from cutline.demo.cards import Split
    from cutline.demo.requests import requests
    from cutline.evaluation.questions import QuestionRow

    for number, request in enumerate(requests(Split.EVALUATION, cards, seed=0), 1):
        asked = request.question
        read = partial(bytes, request.image)
        yield QuestionRow(number, f"card {number}", read, asked.text, (asked.answer,), asked.kind)


def _whose(given: EvalOptions) -> str:
    """Whose answers they are: those of others are asked for anew. Raises BundleError."""
    from cutline.cli.setting import open_drafter, open_target

    opening = given.opening
    if given.agent is not None:
        return given.agent
    models = (open_target(opening.target) if opening.no_drafter else open_drafter(opening.bundle)).manifest.identity
    return f"{models} {opening.server.upstream or ''} {opening.server.upstream_model}"


def _tell_skipped(console: Console, place: str, records: RecordFile) -> int:
    """Say of each question why it could not be asked, as far as there are few; returns how many there are."""
    count = 0
    for record, *_ in records.every():
        if record.why is not None:
            count += 1
            if count <= SHOWN:
                console.print(f"{place} {record.number}: {record.why}", markup=False, soft_wrap=True)
    if count > SHOWN:
        console.print(f"and {count - SHOWN} more, which {records.path} names", soft_wrap=True)
    return count


def _show(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from cutline.cli.terminal.tables import show_table
    from cutline.evaluation.report import group_rows, rows_of

    console = Console()
    title = f"{found.questions} questions" + (f", {found.skipped} left out" if found.skipped else "")
    for heading, rows in (("a question", rows_of(found)), ("by group", group_rows(found))):
        table = Table(title=title if heading == "a question" else None, title_justify="left")
        table.add_column(heading)
        for mode in found.modes:
            table.add_column(mode, justify="right")
        for name, cells in rows:
            table.add_row(name, *cells)
        if rows:
            show_table(console, table)
