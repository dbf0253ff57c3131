"""The demo's report: a well-formed page that shows every mode, tells what holds, and escapes what it is given."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import pytest

from cutline.core.request import Mode
from cutline.demo.cards import Split
from cutline.demo.report import render
from cutline.demo.requests import CardRequest, requests
from cutline.demo.results import FIGURES, SHOWN_MODES, DemoResult, Outcome, mode_result, model_result
from cutline.edge.generation.result import Answer, Provenance, Token

VOID = {"img", "meta"}
HOSTILE = '<script>alert("1")</script>&\'"}}{{ 7 * 7 }}'


class Page(HTMLParser):
    """Checks that elements nest, and collects what they hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element `tag`."""
        return [attributes for name, attributes in self.elements if name == tag]


def tokens(text: str, sources: Sequence[Provenance]) -> list[Token]:
    """The text's words as tokens, sources repeating the last, and an empty one that ends it."""
    words = [*re.findall(r" ?\S+", text), ""]
    return [Token(sum(map(ord, word)), word, sources[min(index, len(sources) - 1)]) for index, word in enumerate(words)]


def outcome(request: CardRequest, mode: Mode, *, index: int) -> Outcome:
    """A made-up run: every third drafted answer is wrong, and the gate doubts all but every second of the others."""
    right = request.question.answer
    drafted = right if index % 3 else right + " 8"
    target = right if index % 11 else "9 9"
    kept = index % 3 != 0 and index % 2 == 1
    on_edge = mode is Mode.EDGE or (mode is Mode.AUTO and kept)
    text = drafted if on_edge else target
    sources = {
        Mode.EDGE: [Provenance.EDGE],
        Mode.CLOUD: [Provenance.CLOUD],
        Mode.DRAFT: [Provenance.CLOUD, Provenance.DRAFT],
        Mode.AUTO: [Provenance.EDGE] if kept else [Provenance.DRAFT, Provenance.DRAFT, Provenance.CLOUD],
    }[mode]
    made = tokens(text, sources)
    answer = Answer(
        text=text,
        tokens=made,
        mode=mode,
        latency_ms=(9.0 if on_edge else {Mode.CLOUD: 90.0, Mode.DRAFT: 70.0}.get(mode, 80.0)) + index % 7 * 3,
        ttft_ms=5.0,
        bytes_up=0 if on_edge else 9300 + index,
        bytes_down=0 if on_edge else 140,
        rounds=0 if on_edge else 1,
        drafted=0 if on_edge or mode is Mode.CLOUD else len(made),
        accepted=sum(token.source is Provenance.DRAFT for token in made),
        exact=not on_edge,
        worker=None if on_edge else "127.0.0.1:1",
        cut=None,
        wire=None,
        confidence=0.9 if mode in (Mode.EDGE, Mode.AUTO) else None,
        complete=True,
    )
    return Outcome(request, answer, target, tuple(token.id for token in tokens(target, [Provenance.CLOUD])))


def run(cards: int) -> list[Outcome]:
    asked = requests(Split.EVALUATION, cards, 0)
    return [outcome(request, mode, index=index) for index, request in enumerate(asked) for mode in SHOWN_MODES]


def result(outcomes: Sequence[Outcome]) -> DemoResult:
    alone = [one for one in outcomes if one.answer.mode is Mode.EDGE]
    return DemoResult(
        modes=[mode_result(mode, [one for one in outcomes if one.answer.mode is mode]) for mode in SHOWN_MODES],
        target=model_result("digit-target", "a" * 64, ((one.request, one.target_text) for one in alone)),
        drafter=model_result("digit-drafter", "b" * 64, ((one.request, one.answer.text) for one in alone)),
        link="4g",
        images=len(alone) // 6,
        seed=0,
    )


OUTCOMES = run(8)
RESULT = result(OUTCOMES)
PAGE = render(RESULT, OUTCOMES)


def page_with(changes: dict[Mode, dict[str, float | None]]) -> str:
    modes = [msgspec.structs.replace(one, **changes.get(one.mode, {})) for one in RESULT.modes]
    return Page(render(msgspec.structs.replace(RESULT, modes=modes), OUTCOMES)).text


def test_the_page_is_well_formed_and_its_ids_are_unique() -> None:
    page = Page(PAGE)
    ids = Counter(found["id"] for _, found in page.elements if "id" in found)
    assert len(page.all("svg")) == 4
    assert ids.most_common(1)[0][1] == 1
    for _, found in page.elements:  # what is referred to is there
        for name in ("href", "xlink:href", "aria-labelledby"):
            if (value := found.get(name)) is not None:
                assert value.removeprefix("#") in ids


def test_the_page_needs_nothing_from_outside() -> None:
    page = Page(PAGE)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert not re.findall(r"@import|url\((?!#)", PAGE)


def test_every_colour_of_the_page_is_defined() -> None:
    assert set(re.findall(r"var\((--[\w-]+)\)", PAGE)) <= set(re.findall(r"(--[\w-]+):", PAGE))
    assert "#fedc0" not in PAGE


def test_the_same_input_gives_the_same_page() -> None:
    assert render(result(run(8)), run(8)) == PAGE


def test_every_mode_stands_in_the_table() -> None:
    page = Page(PAGE)
    for name, figure in FIGURES.items():
        cells = r"\s*".join(re.escape(figure(mode)) for mode in RESULT.modes)
        assert re.search(rf"{name}\s*{cells}", page.text)
    for mode in RESULT.modes:
        assert any(
            f"{mode.mode}: p50 {mode.p50_ms:.0f} ms" in (found.get("aria-label") or "") for found in page.all("div")
        )


def test_pictures_show_the_cards_with_every_answer_token_by_token() -> None:
    page = Page(PAGE)
    images = [base64.b64decode((found["src"] or "").partition(",")[2]) for found in page.all("img")]
    assert len(images) == 12
    assert set(images) == {one.request.image for one in OUTCOMES}  # all eight cards
    assert all((found["alt"] or "").startswith("Card: ") for found in page.all("img"))
    titles = Counter((found["title"] or "").partition(":")[0] for found in page.all("span") if "title" in found)
    assert set(titles) == set(Provenance)
    assert page.text.count("✗ wrong") > 0
    for story in ("put it right", "Part of the answer was drafted", "the worker was not needed", "itself is wrong"):
        assert story in page.text


def test_hostile_text_stays_text() -> None:
    def poisoned(one: Outcome) -> Outcome:
        question = replace(one.request.question, text=HOSTILE, answer=HOSTILE)
        answer = msgspec.structs.replace(one.answer, text=HOSTILE, tokens=[Token(1, HOSTILE, Provenance.CLOUD)])
        return replace(one, request=replace(one.request, question=question), answer=answer, target_text=HOSTILE)

    model = msgspec.structs.replace(RESULT.target, name=HOSTILE, identity=HOSTILE)
    bad = msgspec.structs.replace(RESULT, link=HOSTILE, target=model, drafter=model)
    page = Page(render(bad, [poisoned(one) for one in OUTCOMES]))
    assert page.all("script") == []
    assert page.text.count(HOSTILE) >= 2 + 4 + 12 * (1 + 1 + 1 + len(SHOWN_MODES))  # nothing lost, nothing calculated


@pytest.mark.parametrize(
    ("draft_ms", "sentence"),
    [
        (20.0, "Drafting paid: 20 ms in mode draft, 50 ms in cloud."),
        (50.4, "Drafting changed nothing: 50 ms in modes draft and cloud alike."),
        (80.0, "Drafting did not pay: 80 ms in mode draft, 50 ms in cloud."),
    ],
)
def test_it_says_whether_drafting_paid(draft_ms: float, sentence: str) -> None:
    assert sentence in page_with({Mode.CLOUD: {"p50_ms": 50.0}, Mode.DRAFT: {"p50_ms": draft_ms}})


def test_it_says_when_the_promise_is_broken_and_when_nothing_is_kept() -> None:
    assert "promise all, and gave them" in page_with({})
    assert "promise all, and did not give them" in page_with({Mode.DRAFT: {"identical_to_target": 0.98}})
    assert "kept no answer" in page_with({Mode.AUTO: {"kept_agreement": None, "offloaded": 1.0}})


def test_one_card_is_enough() -> None:
    outcomes = run(1)
    page = Page(render(result(outcomes), outcomes))
    assert "6 questions about 1 card of" in page.text
    assert len(page.all("img")) == 6
