"""The HTML report of a demo run: one file that needs nothing else, with tables, plots and pictures.

`report.html` beside this file is its template.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from cutline.core.request import Mode
from cutline.demo import plots
from cutline.demo.questions import KINDS
from cutline.demo.requests import CardRequest
from cutline.demo.results import FIGURES, DemoResult, Outcome
from cutline.edge.generation.result import Provenance
from cutline.evaluation.page import render_page

PICTURES = 12  # cards shown, at most

MODES = {
    Mode.EDGE: "the drafter alone, on the device",
    Mode.CLOUD: "the target alone, on the worker, which gets the image",
    Mode.DRAFT: "drafted on the device, verified by the worker, which decodes on meanwhile",
    Mode.AUTO: "the drafter's answer where the gate trusts it, otherwise verified by the worker",
}
SOURCES = {
    Provenance.EDGE: "the drafter's, not verified",
    Provenance.DRAFT: "drafted on the device, confirmed by the target",
    Provenance.CLOUD: "the target's, not drafted",
}

_T = TypeVar("_T")
_Asked = dict[Mode, Outcome]  # one request's outcomes


def render(result: DemoResult, outcomes: Sequence[Outcome]) -> str:
    """The report as an HTML page. `outcomes` holds every request in every mode; the same input gives the same page."""
    asked = _by_request(outcomes)
    kinds = [kind for kind in KINDS if kind in result.target.right_by_kind]
    return render_page(
        "cutline.demo",
        "report.html",
        result=result,
        requests=len(asked),
        findings=_findings(result),
        modes=MODES,
        sources=SOURCES,
        headings=[mode.mode for mode in result.modes],
        rows=[(name, [figure(mode) for mode in result.modes]) for name, figure in FIGURES.items()],
        kinds=kinds,
        models=[
            (role, [f"{rate:.1%}" for rate in (model.right, *(model.right_by_kind[kind] for kind in kinds))])
            for role, model in (("target", result.target), ("drafter", result.drafter))
        ],
        plots=[
            plots.latency(result, outcomes),
            plots.upload(result),
            plots.right_by_kind(result),
            plots.sources(outcomes),
        ],
        pictures=_telling(asked)[:PICTURES],
    )


# What the figures say


def _findings(result: DemoResult) -> list[str]:
    """Sentences that hold for this run, whichever way it went."""
    modes = {mode.mode: mode for mode in result.modes}
    cloud, draft, auto = modes[Mode.CLOUD], modes[Mode.DRAFT], modes[Mode.AUTO]
    same = ", ".join(f"{mode.mode} {mode.identical_to_target * mode.n:.0f} of {mode.n}" for mode in result.modes)
    promise = "gave them" if cloud.identical_to_target == draft.identical_to_target == 1 else "did not give them"
    best = _ms(min(mode.p50_ms for mode in result.modes))
    fastest = " and ".join(mode.mode for mode in result.modes if _ms(mode.p50_ms) == best)
    kept = round((1 - auto.offloaded) * auto.n)
    return [
        f"Answers with exactly the unsplit target's tokens: {same}. Modes cloud and draft promise all, and {promise}.",
        f"Right answers: the target alone {result.target.right:.1%}, the drafter alone {result.drafter.right:.1%}, "
        f"mode auto {auto.right:.1%}.",
        f"Fastest at p50: {fastest}, {best}. "
        + _compared(
            _ms,
            draft.p50_ms,
            cloud.p50_ms,
            less="Drafting paid: {0} in mode draft, {1} in cloud.",
            more="Drafting did not pay: {0} in mode draft, {1} in cloud.",
            same="Drafting changed nothing: {0} in modes draft and cloud alike.",
        ),
        "Mode auto kept no answer on the device: every request went to the worker."
        if auto.kept_agreement is None
        else f"Mode auto kept {kept} of {auto.n} answers on the device; {auto.kept_agreement * kept:.0f} of those "
        f"{kept} are the target's.",
        _compared(
            _bytes,
            auto.bytes_up,
            cloud.bytes_up,
            less="Mode auto sent less than cloud: {0} up a request against {1}.",
            more="Mode auto sent more than cloud: {0} up a request against {1}.",
            same="Modes auto and cloud sent as much: {0} up a request.",
        ),
    ]


def _compared(unit: Callable[[float], str], one: float, other: float, *, less: str, more: str, same: str) -> str:
    """The sentence that holds for two figures as a reader sees them: what is written the same is the same."""
    if unit(one) == unit(other):
        return same.format(unit(one))
    return (less if one < other else more).format(unit(one), unit(other))


def _ms(value: float) -> str:
    return f"{value:.0f} ms"


def _bytes(value: float) -> str:
    return f"{value:.0f} B" if value < 1000 else f"{value / 1000:.1f} kB"


# Pictures


@dataclass(frozen=True, slots=True)
class _Picture:
    """A card with its question, the answers in every mode, and what they tell."""

    story: str
    request: CardRequest
    image: str  # base64
    shows: str
    target: str
    target_right: bool
    answers: list[Outcome]


# What a request can tell, the rarest first; each request tells the first that holds, and the last two cover all.
_STORIES: tuple[tuple[str, Callable[[_Asked], bool]], ...] = (
    (
        "The drafter alone is wrong; the gate doubted it, and the worker put it right.",
        lambda asked: not asked[Mode.EDGE].right and asked[Mode.AUTO].right and asked[Mode.AUTO].offloaded,
    ),
    (
        "The gate trusted the drafter, and the target would have answered otherwise.",
        lambda asked: not asked[Mode.AUTO].offloaded and not asked[Mode.AUTO].identical,
    ),
    (
        "The target itself is wrong.",
        lambda asked: asked[Mode.CLOUD].target_text != asked[Mode.CLOUD].request.question.answer,
    ),
    (
        "Part of the answer was drafted, part came from the cloud.",
        lambda asked: any(
            len({token.source for token in one.answer.tokens if token.text}) > 1 for one in asked.values()
        ),
    ),
    ("The gate doubted the drafter and asked the worker.", lambda asked: asked[Mode.AUTO].offloaded),
    ("The gate trusted the drafter: the worker was not needed.", lambda asked: not asked[Mode.AUTO].offloaded),
)


def _by_request(outcomes: Iterable[Outcome]) -> list[_Asked]:
    asked: defaultdict[tuple[bytes, str, str], _Asked] = defaultdict(dict)
    for one in outcomes:
        asked[one.request.image, one.request.question.kind, one.request.question.text][one.answer.mode] = one
    return list(asked.values())


def _telling(requests: Iterable[_Asked]) -> list[_Picture]:
    """All requests, those first that show most together: stories in turn, their kinds in turn, and so the cards."""
    told: dict[str, dict[str, list[_Picture]]] = {story: {kind: [] for kind in KINDS} for story, _ in _STORIES}
    for asked in requests:
        story = next(story for story, holds in _STORIES if holds(asked))
        picture = _picture(story, asked)
        told[story][picture.request.question.kind].append(picture)
    cards: defaultdict[str, list[_Picture]] = defaultdict(list)
    for picture in _in_turn(_in_turn(kinds.values()) for kinds in told.values()):
        cards[picture.image].append(picture)
    return _in_turn(cards.values())


def _in_turn(groups: Iterable[Sequence[_T]]) -> list[_T]:
    """The first of every group, then the second of every group, and so on."""
    return [one for turn in zip_longest(*groups) for one in turn if one is not None]


def _picture(story: str, asked: _Asked) -> _Picture:
    one = asked[Mode.CLOUD]
    return _Picture(
        story=story,
        request=one.request,
        image=base64.b64encode(one.request.image).decode(),
        shows=", ".join(f"{digit.colour} {digit.value} at {digit.place}" for digit in one.request.card.digits),
        target=one.target_text,
        target_right=one.target_text == one.request.question.answer,
        answers=[asked[mode] for mode in MODES],
    )
