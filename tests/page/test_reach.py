"""That the page can be used without a mouse, without eyes, and without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from cutline.core.request import Mode
from cutline.edge.generation.events import Guessed, Planned, Settled
from cutline.edge.generation.result import Lost, Provenance
from cutline.testing.browser import WIDE
from tests.page.conftest import PHONE, WORKER, Page, Scripted, answered, spoken

SAID = spoken("A red seven above a blue three", Provenance.DRAFT)
AXE = Path(axe_core_python.__file__).with_name("axe.min.js")


def test_everything_is_reached_and_done_by_keyboard(page: Page, agent: Scripted, picture: Path) -> None:
    agent.plans = True
    page.open()
    keys = ActionChains(page.driver)
    assert page.focus() == "question"  # ready to write in
    page.run("document.querySelector('.skip').focus()")
    assert page.one(".skip").rect["y"] >= 0  # which it shows for those who come to it
    order = []
    for _ in range(14):
        keys.send_keys(Keys.TAB).perform()
        order.append(page.focus())
    assert order == [
        *("Choose a picture", "Take a picture", "Card 1", "Card 2", "Card 3", "Card 4"),
        *("question", "Choose a picture", "Take a picture", "send"),
        *("auto", "effort", "exact", "offline"),
    ]

    page.one("#question").send_keys("one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "two")
    assert page.one("#question").get_attribute("value") == "one\ntwo"
    page.one("#question").send_keys(Keys.ENTER)
    page.until(lambda: agent.asked)
    assert agent.asked[0].text == "one\ntwo"
    agent.tell(Settled(0, SAID[:1]))
    page.shows(".text", "A")
    keys.send_keys(Keys.ESCAPE).perform()
    page.over()
    assert page.focus() == "question"

    mode = page.one("[value=auto]")
    mode.send_keys(Keys.ARROW_RIGHT)
    page.one("[value=edge]").send_keys(Keys.ARROW_RIGHT)
    page.one("#effort").send_keys(Keys.ARROW_LEFT)
    page.one("#offline").send_keys(Keys.SPACE)
    page.shows("#now", "offline")
    page.one("#offline").send_keys(Keys.SPACE)
    page.shows("#now", "62 ms")
    page.one("[value=draft]").send_keys(Keys.SPACE)
    page.ask("three")
    agent.tell(answered(SAID))
    page.over()
    assert (agent.asked[1].mode, agent.asked[1].effort) == (Mode.DRAFT, 0.9)


def test_the_focus_is_seen(page: Page) -> None:
    ActionChains(page.driver).send_keys(Keys.TAB).perform()  # what has the focus is shown to those who use keys
    for selector in ("#send", "#anew", ".composer [data-choose]", "#effort", "#offline"):
        page.run("const e = document.querySelector(arguments[0]); e.hidden = false; e.focus()", selector)
        assert page.one(selector).value_of_css_property("outline-style") == "solid", selector
    page.run("document.querySelector('[value=auto]').focus()")
    assert page.one("[value=auto] + span").value_of_css_property("outline-style") == "solid"


def test_a_screen_reader_hears_settled_words_and_no_guesses(page: Page, agent: Scripted) -> None:
    assert page.one("#spoken").get_attribute("aria-live") == "polite"
    page.run("""
        window.heard = "";
        const hear = (changes) => changes.forEach((one) => one.addedNodes.forEach(add));
        const add = (node) => window.heard += node.textContent;
        new MutationObserver(hear).observe(document.getElementById("spoken"), {childList: true});
    """)
    page.ask("What is it?")
    agent.tell(Guessed(0, "A grey tree"))
    page.shows(".text .guess", "A grey tree")
    agent.tell(Settled(0, SAID[:4]), Guessed(4, " or below"), Settled(4, SAID[4:]), answered(SAID))
    page.over()
    assert page.run("return window.heard") == "A red seven above a blue three"
    heard = page.text("#said")
    assert heard == "Answered in 84 ms. 7 words: 7 drafted on the device, confirmed by the cloud."


def violations(page: Page) -> list[tuple[str, Any]]:
    page.driver.execute_script(AXE.read_text())
    found = page.run("return (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_axe_finds_nothing(page: Page, agent: Scripted, picture: Path, scheme: str, size: tuple[int, int]) -> None:
    page.open(size, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert violations(page) == []
    lost = Lost(worker=WORKER, why="silent", position=3, silent_ms=1200, next=None)
    page.ask("What is it?", picture)
    agent.tell(Planned(mode=Mode.DRAFT, cut="decoder.2", wire=None, predicted_ms=92, why="the best of 278 plans"))
    agent.tell(Settled(0, SAID[:3]), lost, Guessed(3, " above a blue"))
    page.shows(".text .guess", "above")
    assert violations(page) == []
    agent.tell(answered(SAID, cut="decoder.2", lost=(lost,)))
    page.over()
    page.one("#files").send_keys(str(picture))
    page.until(lambda: page.all("#pictures img"))
    assert violations(page) == []
    if size == PHONE:
        page.one("#open-panel").click()
        page.until(lambda: page.one("#panel").is_displayed())
        assert violations(page) == []


def test_what_models_and_people_write_stays_text(page: Page, agent: Scripted) -> None:
    evil = '<img src=x onerror="document.title=1"><b>bold</b>'
    page.ask(evil)
    tokens = spoken(evil, Provenance.CLOUD)
    agent.tell(Guessed(0, evil), Settled(0, tokens), answered(tokens))
    page.over()
    assert page.text(".text") == evil
    assert page.text(".asked p") == evil
    assert page.all(".turn img, .turn b") == []


def test_scripts_from_elsewhere_do_not_run(page: Page) -> None:
    page.forgiven = ("Content Security Policy",)
    ran = page.run("""
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        const style = document.createElement("style");
        style.textContent = "body { display: none }";
        document.head.append(style);
        return [window.ran === true, getComputedStyle(document.body).display];
    """)
    assert ran == [False, "block"]
