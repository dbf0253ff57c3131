"""The demo's report: a well-formed page that shows every mode, tells what holds, and escapes what it is given."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import pytest

from cutline.demo.cards import Split
from cutline.demo.report import render
from cutline.demo.requests import Request, requests
from cutline.demo.results import DemoResult, Outcome, mode_result, model_result
from cutline.edge.answer import Answer, Mode, Source, Token

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

    def all(self, tag: str, *, of: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements `tag` that have the class `of`."""
        return [
            found for name, found in self.elements if name == tag and of in (found.get("class") or "").split() + [""]
        ]


def tokens(text: str, sources: Sequence[Source]) -> list[Token]:
    """The text's words as tokens, sources repeating the last, and an empty one that ends it."""
    words = [*re.findall(r" ?\S+", text), ""]
    return [Token(sum(map(ord, word)), word, sources[min(index, len(sources) - 1)]) for index, word in enumerate(words)]


def outcome(request: Request, mode: Mode, *, index: int) -> Outcome:
    """A made-up run: every third drafted answer is wrong, and the gate doubts all but every second of the others."""
    right = request.question.answer
    drafted = right if index % 3 else right + " 8"
    target = right if index % 11 else "9 9"
    kept = index % 3 != 0 and index % 2 == 1
    on_edge = mode is Mode.EDGE or (mode is Mode.AUTO and kept)
    text = drafted if on_edge else target
    sources = {
        Mode.EDGE: [Source.EDGE],
        Mode.CLOUD: [Source.CLOUD],
        Mode.DRAFT: [Source.CLOUD, Source.DRAFT],
        Mode.AUTO: [Source.EDGE] if kept else [Source.DRAFT, Source.DRAFT, Source.CLOUD],
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
        accepted=sum(token.source is Source.DRAFT for token in made),
        exact=not on_edge,
        worker=None if on_edge else "127.0.0.1:1",
        confidence=0.9 if mode in (Mode.EDGE, Mode.AUTO) else None,
        complete=True,
    )
    return Outcome(request, answer, target, tuple(token.id for token in tokens(target, [Source.CLOUD])))


def run(cards: int) -> list[Outcome]:
    asked = requests(Split.EVALUATION, cards, 0)
    return [outcome(request, mode, index=index) for index, request in enumerate(asked) for mode in Mode]


def result(outcomes: Sequence[Outcome]) -> DemoResult:
    alone = [one for one in outcomes if one.answer.mode is Mode.EDGE]
    return DemoResult(
        modes=[mode_result(mode, [one for one in outcomes if one.answer.mode is mode]) for mode in Mode],
        target=model_result("digit-target", "a" * 64, ((one.request, one.target_text) for one in alone)),
        drafter=model_result("digit-drafter", "b" * 64, ((one.request, one.answer.text) for one in alone)),
        link="4g",
        images=len(alone) // 6,
        seed=0,
    )
