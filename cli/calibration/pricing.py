"""Measuring prices: the same questions at every cut in every wire format, beside the exact target's answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from cutline.cli.calibration.answers import Respondent
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer
from cutline.models.prices import Price, Prices

KEPT = (0.75, 0.5, 0.25)  # shares of image tokens, at the first cut that has them
AT_ONCE = 4  # questions: the worker runs some while the next are on their way to it


@dataclass(frozen=True, slots=True)
class PricedQuestion:
    """A question about an image (a file's bytes), and its right answer where that is known."""

    image: bytes
    text: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class PricePoint:
    """One way to ask: a cut, a wire format, and the share of image tokens kept."""

    cut: str
    wire: Wire = Wire.FLOAT32
    keep: float = 1.0

    def question(self, asked: PricedQuestion) -> Request:
        """The question put to the target alone in this way."""
        mode = Mode.CLOUD if self.cut == "image" else Mode.SPLIT
        return Request.about(
            asked.image, asked.text, mode=mode, cut=self.cut, wire=self.wire, keep_image_tokens=self.keep
        )


def ways(cuts: Sequence[str]) -> Iterator[PricePoint]:
    """Every way to ask at `cuts`: in all formats, and at `decoder.0` with fewer image tokens."""
    for cut in cuts:
        yield from [PricePoint(cut)] if cut == "image" else (PricePoint(cut, wire) for wire in Wire)
        if cut == "decoder.0":
            yield from (PricePoint(cut, keep=keep) for keep in KEPT)


async def measure(
    open_agent: Callable[[], Agent],
    *,
    cuts: Sequence[str],
    asked: Sequence[PricedQuestion],
    kept: Callable[[Agent], Respondent],
    advance: Callable[[], None],
) -> Prices:
    """The prices of `cuts`, by answers to `asked` of the worker that `open_agent` gives an agent for.

    What `kept` makes of an agent is asked in its place; `advance` hears of each answer. Raises CutlineError.
    """
    prices: list[Price] = []
    exact: list[tuple[int, ...]] = []
    for cut in ("image", *(cut for cut in cuts if cut != "image")):
        # An agent for each cut, as it holds all the spans that it ever ran.
        async with open_agent() as agent:
            answering = kept(agent)
            for way in ways([cut]):
                answers = await _ask_all(answering, way, asked, advance)
                exact = exact or [_ids(answer) for answer in answers]  # the first way is the whole target in the worker
                if cut in cuts:
                    prices.append(price(way, asked, answers, exact))
    return Prices(questions=len(asked), prices=tuple(prices))


def price(
    way: PricePoint, asked: Sequence[PricedQuestion], answers: Sequence[Answer], exact: Sequence[tuple[int, ...]]
) -> Price:
    """The price of one way to ask, by its `answers` to what was `asked` and the tokens of the `exact` ones."""
    found = [_ids(answer) for answer in answers]
    alike = [sum(a == b for a, b in zip(*pair, strict=False)) for pair in zip(found, exact, strict=True)]
    known = [answer.text == one.answer for answer, one in zip(answers, asked, strict=True) if one.answer is not None]
    return Price(
        cut=way.cut,
        wire=way.wire,
        keep_image_tokens=way.keep,
        bytes_up=fmean(answer.bytes_up for answer in answers),
        answers=fmean(ids == truth for ids, truth in zip(found, exact, strict=True)),
        tokens=sum(alike) / sum(map(len, exact)),
        right=fmean(known) if known else None,
    )


async def _ask_all(
    agent: Respondent, way: PricePoint, asked: Sequence[PricedQuestion], advance: Callable[[], None]
) -> list[Answer]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(one: PricedQuestion) -> Answer:
        async with turns:
            answer = (await agent.answer(way.question(one))).of_the_asked()
        advance()
        return answer

    return await asyncio.gather(*map(ask, asked))


def _ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)
