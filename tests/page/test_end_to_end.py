"""The page before the demo's drafter and a real worker, with an emulated link that goes down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from cutline.demo.bundles import TARGET
from cutline.demo.publish import EXAMPLES
from cutline.demo.reference import Reference
from cutline.devices.link import load_link
from cutline.edge.generation.events import Settled
from cutline.models.bundle import Bundle
from cutline.testing.browser import Served, served
from tests.page.conftest import Page

CARD = EXAMPLES / "card2.png"
QUESTION = "Describe the card."


@pytest.fixture(scope="module")
def real(chromium: webdriver.Chrome) -> Iterator[Served]:
    with served(load_link("4g")) as agent:
        yield agent
        chromium.get("about:blank")


def test_an_answer_is_the_targets_and_survives_a_dead_link(real: Served, chromium: webdriver.Chrome) -> None:
    page = Page(chromium, real.address)
    page.open()
    page.faults()
    target = Reference(Bundle.open(TARGET))
    expected = target.text(target.answer(CARD.read_bytes(), QUESTION))
    page.run("document.querySelector('[value=draft]').click()")
    page.ask(QUESTION, CARD)
    page.over()
    assert page.text(".text") == expected
    assert "the big model\u2019s own words" in page.text(".sum")
    assert page.all(".text .run.draft, .text .run.cloud")
    assert page.all(".time rect")

    page.one("#anew").click()
    real.agent.heed = lambda event: real.link.cut() if isinstance(event, Settled) else None
    page.ask(QUESTION, CARD)
    page.shows(".notices", "; the device went on alone")
    page.shows(".notices", "waiting for the link, to have the end verified")
    assert page.text(".notices").startswith("link lost after ")
    real.agent.heed = lambda event: None
    real.restore()
    page.over()
    assert page.text(".text").replace(" (link lost here) ", "") == expected
    assert "the link came back, and the cloud" in page.text(".notices")
    assert page.faults() == []


def test_offline_answers_come_from_the_device_alone(real: Served, chromium: webdriver.Chrome) -> None:
    page = Page(chromium, real.address)
    page.open()
    page.one("#offline").click()
    page.shows("#now", "offline")
    carried = real.link.bytes_up
    page.ask(QUESTION, CARD)
    page.over()
    assert {one.get_attribute("class") for one in page.all(".text .run")} == {"run edge"}
    assert "nothing sent" in page.text(".sum")
    assert real.link.bytes_up == carried
    page.one("#offline").click()
    page.until(lambda: not real.agent.offline)
