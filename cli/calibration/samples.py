"""The samples of a calibration: conversations of every group, made of single questions, and the answers to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, groupby
from typing import TypeVar

import msgspec
import numpy as np

from cutline.cli.calibration.answers import Respondent
from cutline.cli.calibration.inputs import QuestionSource, errors_at
from cutline.core.agreement.measures import TOKENS, Measure, Wording, measure_named
from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import MAX_TIMEOUT, Mode, Request
from cutline.edge.generation.conditions import CALIBRATED, GROUPS, Order, group_of
from cutline.edge.generation.gate import MAX_TOKENS, Sample
from cutline.edge.generation.result import Answer
from cutline.errors import InputError, PromptError

T = TypeVar("T")

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.")
BY_TOKENS = measure_named(TOKENS)
AT_ONCE = 4  # conversations: the worker answers some while the drafter does others


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Questions in turn about the pictures of `shown`, which stand in the first one before its text or behind it.

    The `answers` to their `texts` are known, or else somebody is asked for them.
    """

    system: str | None
    order: Order
    shown: tuple[QuestionSource, ...]
    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()

    @property
    def made_longer(self) -> bool:
        """Whether it is more than the one question about the one picture that somebody gave."""
        return len(self.shown) > 1 or len(self.texts) > 1 or self.system is not None

    def first(self) -> tuple[Message, ...]:
        """What stands before the first answer."""
        pictures = (ImagePart(),) * len(self.shown)
        words = (TextPart(self.texts[0]),)
        asked = Message("user", pictures + words if self.order is Order.PICTURE_FIRST else words + pictures)
        return (asked,) if self.system is None else (_said("system", self.system), asked)


@dataclass(slots=True)
class Samples:
    """What came of conversations: `found`, and how many questions were `left_out` since they did not fit the models."""

    found: list[Sample] = field(default_factory=list)
    left_out: int = 0


def chosen_groups(named: Sequence[str], *, known: bool = False) -> tuple[str, ...]:
    """The groups that have all the words of any of `named`, each words with commas between; all where none is named.

    Answers are `known` of single pictures alone. Raises InputError.
    """
    words = dict.fromkeys(word for group in GROUPS for word in group.split(", "))
    wanted = [[word.strip() for word in one.split(",")] for one in named]
    for word in (word for some in wanted for word in some):
        if word not in words:
            raise InputError(f"--groups: there is no {word[:40]!r}; a group is made of {', '.join(words)}")
    chosen = tuple(
        one.group
        for one in CALIBRATED
        if (one.pictures == 1 or not known)
        and (not wanted or any(set(some) <= set(one.group.split(", ")) for some in wanted))
    )
    if not chosen:
        alone = "; answers are known of single pictures alone" if known else ""
        raise InputError(f"--groups: no group is all of {named[0]!r} at once{alone}")
    return chosen


def conversations(
    sources: Sequence[QuestionSource],
    groups: Collection[str],
    *,
    count: int,
    systems: Sequence[str] = SYSTEMS,
    known: bool = False,
    seed: int = 0,
) -> Iterator[Conversation]:
    """For each way to begin a conversation of the `groups`, `count` of them at most, each of another first question.

    Later questions are others about the same picture, or where there are none texts of other lines. Where the answers
    are to be `known`, they are about one picture and ask of it what its own lines do. The same seed gives the same
    conversations.
    """
    rng, turns = np.random.default_rng(seed), cycle(systems)
    by_picture: dict[str, list[QuestionSource]] = {}
    for source in sources:
        by_picture.setdefault(source.picture, []).append(source)
    names = list(by_picture)
    beginnings = groupby(CALIBRATED, key=lambda one: (one.pictures, one.order, one.system))
    for (pictures, order, system), kind in beginnings:
        if known and pictures > 1:
            continue
        wanted = [one.earlier + 1 for one in kind if one.group in groups]
        for place in rng.permutation(len(sources))[:count] if wanted else ():
            first = sources[place]
            others = _drawn(rng, [name for name in names if name != first.picture], pictures - 1)
            if len(others) < pictures - 1:
                continue
            same = by_picture[first.picture]
            texts = _texts(first, same, () if known else sources, max(wanted), rng)
            answers = {one.text: _answer_of(one) for one in (*same, first)} if known else {}
            yield Conversation(
                system=next(turns) if system else None,
                order=order,
                shown=(first, *(by_picture[name][0] for name in others)),
                texts=texts,
                answers=tuple(answers[text] for text in texts) if known else (),
            )


def _texts(
    first: QuestionSource,
    same: Sequence[QuestionSource],
    every: Sequence[QuestionSource],
    count: int,
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """The text of `first`, then others about the same picture, then of all; `count`, or as many as differ."""
    texts = dict.fromkeys([first.text, *(one.text for one in _drawn(rng, same, len(same)))])
    if len(texts) < count:
        texts |= dict.fromkeys(one.text for one in _drawn(rng, every, len(every)))
    return tuple(texts)[:count]


def _answer_of(source: QuestionSource) -> str:
    """The known answer. Raises InputError."""
    if source.answer is None:
        raise InputError(f'{source.place} has no "answer"; give one to every question, or leave out --against answers')
    return source.answer


def _drawn(rng: np.random.Generator, given: Sequence[T], count: int) -> list[T]:
    """As many as `count` of those that are `given`, in an order by chance."""
    return [given[at] for at in rng.choice(len(given), min(count, len(given)), replace=False)] if given else []


async def sampled(
    agent: Respondent,
    asked: Sequence[Conversation],
    groups: Collection[str],
    *,
    measure: Measure = BY_TOKENS,
    advance: Callable[[], object],
) -> Samples:
    """What the drafter answers in these conversations, where they are of the `groups`; `advance` hears of each.

    The `measure` says whether that agrees with what counts: the known answers, or the target's or upstream's. Those
    are also the earlier answers in a conversation. Raises CutlineError.
    """
    samples, waiting = Samples(), iter(asked)

    async def ask() -> None:
        for conversation in waiting:
            await _ask(agent, conversation, groups, measure, samples)
            advance()

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(ask())
    except ExceptionGroup as failed:  # the first of them says why the others were ended
        raise failed.exceptions[0] from None
    return samples


async def _ask(
    agent: Respondent, conversation: Conversation, groups: Collection[str], measure: Measure, samples: Samples
) -> None:
    population = conversation.shown[0].population
    with errors_at(conversation.shown[0].place):
        try:
            async for question, truth in exchanges(agent, conversation):
                if (group := group_of(question)) in groups:
                    ours = await agent.answer(msgspec.structs.replace(question, mode=Mode.EDGE))
                    agreed = measure.agrees(ours.wording, truth)
                    samples.found.append(_sample(group, ours, truth, agreed=agreed, population=population))
        except PromptError:
            if not conversation.made_longer:  # the line itself does not fit
                raise
            samples.left_out += 1


async def exchanges(agent: Respondent, conversation: Conversation) -> AsyncIterator[tuple[Request, Wording]]:
    """Each question of a conversation and the answer that counts, which stands before the next one.

    Raises CutlineError, a PromptError where it has become too long for the models.
    """
    images = tuple(source.asked().image for source in conversation.shown)
    messages = conversation.first()
    for place, following in enumerate((*conversation.texts[1:], None)):
        question = Request(
            messages=messages, images=images, mode=Mode.CLOUD, max_tokens=MAX_TOKENS, timeout=MAX_TIMEOUT
        )
        truth = Wording(conversation.answers[place]) if conversation.answers else await _truth(agent, question)
        yield question, truth
        if following is not None:
            messages = (*messages, _said("assistant", truth.text), _said("user", following))


async def _truth(agent: Respondent, question: Request) -> Wording:
    """The answer of whoever the agent asks. Raises CutlineError."""
    return (await agent.answer(question)).of_the_asked().wording


def _sample(group: str, ours: Answer, truth: Wording, *, agreed: bool, population: str | None) -> Sample:
    """A sample; an answer that was cut short is none that the gate would keep, however sure the drafter was of it."""
    return Sample(
        group=group,
        confidence=(ours.confidence or 0.0) if ours.complete else 0.0,
        agreed=agreed,
        drafted=tuple(token.id for token in ours.tokens),
        truth=truth.tokens,
        population=population,
    )


def _said(role: str, text: str) -> Message:
    return Message(role, (TextPart(text),))  # type: ignore[arg-type]
