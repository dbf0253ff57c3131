"""What an answer must be whatever happened on the way, held against an unbroken one and the drafter's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from cutline.core.request import Mode, Request
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Corrected, Event, Settled
from cutline.edge.generation.result import Answer, Lost, Provenance
from cutline.edge.inference.drafter import Drafter
from cutline.errors import WorkerError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.law.sampling import agreeing
from cutline.models.prompt import PromptBuilder

Tokens = tuple[int, ...]


@dataclass(slots=True)
class Heard:
    """What an agent told while it answered, each event with the moment it came at (monotonic seconds)."""

    began: float
    events: list[tuple[float, Event]] = field(default_factory=list)
    answer: Answer | None = None
    error: WorkerError | None = None
    ended: float = 0.0

    @property
    def lost(self) -> list[tuple[float, Lost]]:
        """The workers that were lost."""
        return [(at, event) for at, event in self.events if isinstance(event, Lost)]

    def settled_after(self, moment: float) -> float | None:
        """When the first token was settled from a moment on."""
        return next((at for at, event in self.events if at >= moment and isinstance(event, Settled)), None)


async def hear(agent: Agent, question: Request, during: Callable[[int], object] = lambda settled: None) -> Heard:
    """Ask, and listen to the end; `during` is told how many tokens are settled, whenever that changes."""
    heard = Heard(time.monotonic())
    try:
        async with aclosing(agent.stream(question)) as stream:
            async for event in stream:
                heard.events.append((time.monotonic(), event))
                if isinstance(event, Answer):
                    heard.answer = event
                elif isinstance(event, Settled):
                    during(event.position + len(event.tokens))
    except WorkerError as error:
        heard.error = error
    heard.ended = time.monotonic()
    return heard


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong with an answer: nothing, if it is as it must be.

    So many tokens are `changed`; `torn` says that the events do not make up the answer, or some token came twice.
    """

    changed: int = 0
    torn: bool = False
    wrong: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether it is as it must be."""
        return not (self.changed or self.torn or self.wrong)


class Checker:
    """Knows what the drafter of a bundle says alone."""

    def __init__(self, bundle: Bundle) -> None:
        self._family = bundle.manifest.family
        self._prompts = PromptBuilder.open(bundle)
        self._drafter = Drafter.open(bundle, threads=1)

    def rest(self, question: Request, after: Sequence[int]) -> Tokens:
        """What the drafter makes of a question, from an answer's first tokens on."""
        pixels = [self._family.preprocess(decode_image(image)) for image in question.images]
        prompt = self._prompts.build(question.messages, [one.grid for one in pixels]).ids
        drafting = self._drafter.converse(prompt, pixels, question.sampling)
        return tuple(one.token for one in drafting.draft(tuple(after), (question.max_tokens or 64) - len(after)))

    def find(self, question: Request, heard: Heard, truth: Tokens, *, first: str, spared: bool) -> Found:
        """What is wrong with what was `heard` of a question, whose unbroken answer is `truth`.

        The worker at `first` was well and asked before others; `spared` says that another was there all the time.
        """
        answer, wrong = heard.answer, list[str]()
        if answer is None:
            # Who asked for the target, of whom nothing came, is told so.
            may = not spared and question.mode in (Mode.CLOUD, Mode.SPLIT)
            return Found(wrong=() if may and heard.error is not None else (f"no answer: {heard.error}",))
        ids = tuple(token.id for token in answer.tokens)
        alone = answer.alone_from
        if alone is None:
            expected = truth
        else:
            expected = (*truth[:alone], *self.rest(question, ids[:alone]))
            if spared:
                why = "; ".join(f"{lost.worker}: {lost.why}" for _, lost in heard.lost)
                wrong.append(f"went on alone though a worker was left ({why})")
            if answer.exact:
                wrong.append("said to be exact")
            if any(token.source is not Provenance.EDGE for token in answer.tokens[alone:]):
                wrong.append("what came from the drafter alone is not said to")
        if alone is None and not answer.exact:
            wrong.append("not said to be exact")
        if answer.worker != first and not answer.lost:
            wrong.append("nobody was told of the loss")
        if tuple(event for _, event in heard.lost) != answer.lost:
            wrong.append("other losses told than answered")
        alike = agreeing(ids, expected)
        return Found(max(len(ids), len(expected)) - alike, _torn(heard, ids), tuple(wrong))


def _torn(heard: Heard, ids: Tokens) -> bool:
    told: list[int] = []
    for _, event in heard.events:
        match event:
            case Settled() if event.position != len(told):
                return True
            case Settled():
                told += [token.id for token in event.tokens]
            case Corrected():
                told[event.position :] = [token.id for token in event.tokens]
    return tuple(told) != ids
