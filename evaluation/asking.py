"""Asking every question in every mode, one after the other: what is measured of one, no other slows down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from cutline.core.request import Mode, Request
from cutline.edge.generation.result import Answer
from cutline.errors import ImageError, PromptError
from cutline.evaluation.questions import BadRow, QuestionRow
from cutline.evaluation.records import EvalRecord, RecordFile, record_of

Ask = Callable[[Request], Awaitable[Answer]]
Make = Callable[[bytes, str, Mode], Request]  # the question about an image, with this text, in a mode


async def ask_all(
    rows: Iterable[QuestionRow | BadRow],
    modes: Sequence[Mode],
    ask: Ask,
    records: RecordFile,
    *,
    make: Make,
    advance: Callable[[int], object],
) -> None:
    """Add the records of all questions that have none yet; `advance` hears the number of each line that is done.

    What is wrong about a question, or its picture, is a record too. Raises CutlineError where nobody answers: what was
    done stays.
    """
    warm = False
    for row in rows:
        if row.number <= records.last:
            continue
        if isinstance(row, BadRow):
            records.put([EvalRecord(number=row.number, why=row.why)])
        else:
            try:
                image = row.read()
                asked = [make(image, row.text, mode) for mode in modes]
                for one in () if warm else asked:  # opens the connection and warms the models
                    await ask(one)
                warm = True
                found = [(one.mode, (await ask(one)).of_the_asked()) for one in asked]
            except (ImageError, PromptError) as error:  # whatever else is wrong, is so of all questions
                records.put([EvalRecord(number=row.number, why=str(error))])
            else:
                records.put(
                    [record_of(row.number, mode, one, answers=row.answers, group=row.group) for mode, one in found]
                )
        advance(row.number)
