"""What a person does on the page, in a real browser, before an agent that follows a script."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from cutline.core.request import Mode
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER
from cutline.edge.generation.events import Corrected, Guessed, Planned, Settled
from cutline.edge.generation.result import (
    Believed,
    Decision,
    Energy,
    Forecast,
    Gated,
    Lost,
    Provenance,
    RunnerUp,
    Tail,
    Token,
)
from cutline.errors import WorkerFailed, WorkerUnavailable
from tests.page.conftest import PHONE, WORKER, Page, Scripted, answered, png, spoken

SAID = spoken("A red seven above a blue three", Provenance.DRAFT)


def test_a_question_goes_out_as_it_was_asked(page: Page, agent: Scripted, picture: Path) -> None:
    page.ask("What is it?", picture)
    agent.tell(answered(SAID))
    page.over()
    (asked,) = agent.asked
    assert asked.images == (picture.read_bytes(),)
    assert asked.text == "What is it?"
    assert (asked.mode, asked.effort, asked.exact, asked.correct_seconds) == (Mode.AUTO, 1.0, False, 10)
    assert page.text(".text") == "A red seven above a blue three"
    assert page.one(".asked img").get_attribute("alt") == "card.png"
    assert page.run("return document.querySelector('.asked img').naturalWidth") == 64
    assert page.all("#pictures img") == []


def test_guesses_are_grey_until_they_are_settled(page: Page, agent: Scripted) -> None:
    page.ask("What is it?")
    agent.tell(Planned(mode=Mode.DRAFT, cut="image", wire=None), Guessed(0, "A red seven above"))
    page.shows(".text .guess", "A red seven above")
    assert page.all(".text .run") == []
    guess = page.one(".text .guess")
    assert guess.get_attribute("aria-hidden") == "true"
    grey = guess.value_of_css_property("color")
    agent.tell(Settled(0, SAID[:2]))
    page.shows(".text .run.draft", "A red")
    assert page.text(".text .guess") == " seven above"  # what agrees with the settled words stays
    run = page.one(".text .run.draft")
    assert run.value_of_css_property("text-decoration-line") == "underline"
    page.until(lambda: run.value_of_css_property("color") != grey)  # it fades
    agent.tell(Settled(2, spoken("X eight", Provenance.CLOUD)[1:]))
    page.shows(".text", "A red eight")
    assert page.text(".text .guess") == ""  # and what does not is gone
    agent.tell(Guessed(3, " below"))
    page.shows(".text .guess", " below")
    agent.tell(answered([*SAID[:2], *spoken("X eight", Provenance.CLOUD)[1:]]))
    page.over()
    assert page.text(".text") == "A red eight"


def test_each_source_has_a_line_of_its_own_and_is_told_in_words(page: Page, agent: Scripted) -> None:
    tokens = [*SAID[:2], *spoken("X seven", Provenance.CLOUD)[1:], *spoken("X stands there", Provenance.EDGE)[1:]]
    page.ask("What is it?")
    agent.tell(Settled(0, tuple(tokens)), answered(tokens))
    page.over()
    runs = page.all(".text .run")
    assert [run.text.strip() for run in runs] == ["A red", "seven", "stands there"]
    styles = [run.value_of_css_property("text-decoration-style") for run in runs]
    colours = {run.value_of_css_property("text-decoration-color") for run in runs}
    assert styles == ["solid", "double", "dotted"]
    assert len(colours) == 3
    assert [run.get_attribute("title") for run in runs] == [
        "draft: drafted on the device, confirmed by the cloud",
        "cloud: written by the cloud",
        "edge: the device\u2019s own, not verified",
    ]
    assert page.one(".sum").text.split("\n") == [
        *("2 edge words", "2 draft words", "1 cloud word", "84 ms", "8.8 kB up", "the big model\u2019s own words")
    ]
    widths = page.run("return [...document.querySelectorAll('.rule i')].map((e) => [e.className, +e.style.flexGrow])")
    assert widths == [["draft", 2], ["cloud", 1], ["edge", 2]]


def test_words_are_counted_whatever_tokens_they_are_made_of(page: Page, agent: Scripted) -> None:
    pieces = ("A", Provenance.EDGE), ("sp", Provenance.DRAFT), ("ar", Provenance.CLOUD), ("row", Provenance.EDGE)
    tokens = [Token(at, f" {text}" if at == 1 else text, source) for at, (text, source) in enumerate(pieces)]
    page.ask("What is it?")
    agent.tell(answered(tokens, text="A sparrow"))
    page.over()
    assert page.one(".sum").text.split("\n")[:2] == ["1 edge word", "1 draft word"]
    assert "2 words" in page.text("#said")


def test_a_card_is_there_to_ask_about(page: Page, agent: Scripted) -> None:
    page.one("[data-example='card2.png']").click()
    page.until(lambda: page.all("#pictures img"))
    page.ask("Describe the card.")
    page.until(lambda: agent.asked)
    assert agent.asked[0].images == ((DRAFTER.parents[1] / "examples" / "card2.png").read_bytes(),)
    agent.tell(answered(SAID))
    page.over()


def test_a_lost_link_is_told_and_the_answer_goes_on(page: Page, agent: Scripted) -> None:
    lost = Lost(worker=WORKER, why="silent for 1.2 s", position=3, silent_ms=1200, next=None)
    alone = spoken("X under a grey tree", Provenance.EDGE)[1:]
    page.ask("What is it?")
    agent.tell(Settled(0, SAID[:3]), lost)
    page.shows(".notices", "link lost after 3 words; the device went on alone")
    assert page.text("#said") == "The link was lost."
    agent.lose()
    agent.tell(Settled(3, alone))
    page.shows(".text", "under a grey tree")
    assert [one.get_attribute("class") for one in page.all(".text > *")][:3] == ["run draft", "cut", "run edge"]
    agent.tell(answered([*SAID[:3], *alone], lost=(lost,), alone_from=3, tail=Tail.UNVERIFIED, exact=False))
    page.over()
    assert "the end was not verified" in page.text(".notices")
    assert len(page.all(".rule .gap")) == 1
    page.shows("#now", "link lost")
    assert page.one("#panel .workers .down").text == f"{WORKER} does not answer; tried again in 4 s"


def test_another_worker_may_go_on(page: Page, agent: Scripted) -> None:
    page.ask("What is it?")
    agent.tell(Settled(0, SAID[:1]), Lost(worker=WORKER, why="reset", position=1, silent_ms=3, next="10.0.0.3:50051"))
    page.shows(".notices", "link lost after 1 word; 10.0.0.3:50051 went on")


def test_a_correction_replaces_the_tail_before_the_eyes(page: Page, agent: Scripted) -> None:
    lost = Lost(worker=WORKER, why="silent", position=3, silent_ms=1200, next=None)
    alone = spoken("X under a grey tree", Provenance.EDGE)[1:]
    page.ask("What is it?")
    agent.tell(Settled(0, SAID[:3]), lost, Settled(3, alone), Corrected(3, SAID[3:]))
    page.shows(".text", "above a blue three")
    assert "grey" not in page.text(".text")
    assert page.text(".notices del") == "under a grey tree"
    assert page.text(".text .run.new") == " above a blue three"
    page.shows("#spoken", "Corrected:  above a blue three")
    agent.tell(answered(SAID, lost=(lost,), alone_from=3, tail=Tail.CORRECTED))
    page.over()
    assert page.text(".notices del") == "under a grey tree"


@pytest.mark.parametrize("key", [True, False])
def test_stop_ends_the_answer_and_keeps_what_was_said(page: Page, agent: Scripted, key: bool) -> None:
    page.ask("What is it?")
    agent.tell(Guessed(0, "A red seven"), Settled(0, SAID[:2]))
    page.shows(".text .run", "A red")
    if key:
        page.one("#question").send_keys(Keys.ESCAPE)
    else:
        page.one("#stop").click()
    page.over()
    assert agent.closed.wait(30)  # the agent gave it up too
    assert page.text(".text") == "A red"
    assert page.text(".notices") == "stopped"
    assert page.one("#send").is_displayed()
    page.one(".foot button").click()  # ask again
    page.until(lambda: len(agent.asked) == 2)
    assert agent.asked[1].text == "What is it?"
    assert len(page.all(".answer")) == 1


def test_errors_stand_in_one_line(page: Page, agent: Scripted) -> None:
    page.forgiven = ("503",)
    page.ask("What is it?")
    agent.tell(WorkerUnavailable("no worker answers at 10.0.0.2:50051; is it running?"))
    page.over()
    assert page.text(".notices") == "no worker answers at 10.0.0.2:50051; is it running?"
    page.ask("And now?")
    agent.tell(Settled(0, SAID[:2]), WorkerFailed("the worker skipped 3 tokens"))
    page.over()
    assert page.text(".answer:last-child .notices") == "the worker skipped 3 tokens"
    assert page.text("#said") == "No answer: the worker skipped 3 tokens"
    page.one("#question").send_keys(Keys.ENTER)
    assert page.one("#trouble").text == "write a question first"


def test_an_agent_that_is_gone_is_told(page: Page, agent: Scripted) -> None:
    page.forgiven = ("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE")
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*chat*", "*state*"]})
    page.forgiven += ("ERR_BLOCKED_BY_CLIENT",)
    page.ask("What is it?")
    page.over()
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    assert page.text(".notices") == "the agent does not answer; is it still running?"
    page.shows("#now", "agent gone")
    page.shows("#now", "62 ms")


def test_a_conversation_keeps_its_history(page: Page, agent: Scripted, picture: Path) -> None:
    page.ask("What is it?", picture)
    agent.tell(answered(SAID))
    page.over()
    page.ask("Which colour?")
    agent.tell(answered(spoken("Red", Provenance.CLOUD)))
    page.over()
    second = agent.asked[1]
    assert [(one.role, one.text) for one in second.messages] == [
        ("user", "What is it?"),
        ("assistant", "A red seven above a blue three"),
        ("user", "Which colour?"),
    ]
    assert second.images == (picture.read_bytes(),)
    page.one("#anew").click()
    assert page.all(".turn") == []
    page.ask("Hello?")
    agent.tell(answered(spoken("Yes", Provenance.EDGE)))
    page.over()
    assert [one.text for one in agent.asked[2].messages] == ["Hello?"]


def test_pictures_may_be_several_and_be_taken_back(page: Page, agent: Scripted, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(png("red"))
    page.one("#files").send_keys(f"{picture}\n{other}\n{picture}")
    page.until(lambda: len(page.all("#pictures img")) == 3)
    page.one("#pictures li:last-child button").click()
    page.ask("Which is red?")
    agent.tell(answered(SAID))
    page.over()
    assert agent.asked[0].images == (picture.read_bytes(), other.read_bytes())


GIVE = """
const [content, name, type, way] = arguments;
const data = new DataTransfer();
data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, {type}));
const how = {bubbles: true, cancelable: true};
if (way === "drop") document.body.dispatchEvent(new DragEvent("dragover", {...how, dataTransfer: data}));
const invited = !document.getElementById("drop").hidden;
const event = way === "drop" ? new DragEvent("drop", {...how, dataTransfer: data})
  : new ClipboardEvent("paste", {...how, clipboardData: data});
document.getElementById("question").dispatchEvent(event);
return invited;
"""
FACTS = """
const rows = [...document.querySelectorAll("#told .facts > div")];
return rows.map((row) => [...row.children].map((cell) => cell.textContent));
"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(page: Page, agent: Scripted, way: str) -> None:
    invited = page.run(GIVE, base64.b64encode(png("navy")).decode(), "shot.png", "image/png", way)
    assert invited == (way == "drop")
    page.until(lambda: page.all("#pictures img"))
    assert not page.one("#drop").is_displayed()
    page.ask("What is it?")
    agent.tell(answered(SAID))
    page.over()
    assert agent.asked[0].images == (png("navy"),)


def test_what_is_no_picture_is_refused_here(page: Page) -> None:
    page.run(GIVE, base64.b64encode(b"not a picture").decode(), "notes.txt", "text/plain", "paste")
    page.shows("#trouble", "notes.txt is not a picture that this browser can read; use JPEG, PNG or WebP")


def test_a_picture_that_the_agent_does_not_read_is_redrawn(page: Page, agent: Scripted) -> None:
    out = BytesIO()
    Image.new("RGB", (3000, 40), "green").save(out, "BMP")
    page.run(GIVE, base64.b64encode(out.getvalue()).decode(), "scan.bmp", "image/bmp", "paste")
    page.until(lambda: page.all("#pictures img"))
    page.ask("What is it?")
    agent.tell(answered(SAID))
    page.over()
    with Image.open(BytesIO(agent.asked[0].images[0])) as sent:
        assert (sent.format, sent.size) == ("JPEG", (2048, 27))


def test_the_camera_takes_a_picture(page: Page, agent: Scripted) -> None:
    page.one(".composer [data-camera]").click()
    page.until(lambda: page.one("[data-take]").is_enabled())
    assert page.run("return document.querySelector('video').videoWidth") > 0
    page.one("[data-take]").click()
    page.until(lambda: page.all("#pictures img"))
    assert not page.one("#camera").is_displayed()
    assert page.run("return document.querySelector('video').srcObject") is None  # the camera is off again
    page.ask("What do you see?")
    agent.tell(answered(SAID))
    page.over()
    with Image.open(BytesIO(agent.asked[0].images[0])) as sent:
        assert sent.format == "JPEG"
        assert min(sent.size) > 100


def test_offline_is_switched_and_shown(page: Page, agent: Scripted) -> None:
    page.one("#offline").click()
    page.shows("#now", "offline")
    assert agent.offline
    assert [one.get_attribute("value") for one in page.all("[name=mode]") if not one.is_enabled()] == ["draft", "cloud"]
    page.one("#offline").click()
    page.shows("#now", "62 ms")
    assert not agent.offline


def test_who_may_not_switch_it_sees_so(chromium: webdriver.Chrome) -> None:
    agent = Scripted()
    agent.offline = True
    with agent.serving() as address:
        page = Page(chromium, address)
        page.open()
        page.shows("#now", "offline")
        assert not page.one("#offline").is_enabled()
        assert page.one("#offline").is_selected()
        assert "who runs the agent" in page.text("#offline-means")
        chromium.get("about:blank")  # which ends its requests, so that the agent can stop


def test_a_mode_that_went_away_is_not_asked_for(page: Page, agent: Scripted) -> None:
    page.one("[value=cloud]").click()
    page.one("#offline").click()
    page.shows("#now", "offline")
    page.ask("What is it?")
    agent.tell(answered(SAID))
    page.over()
    assert agent.asked[0].mode is Mode.AUTO


def test_the_panel_says_how_and_why_and_what_it_cost(page: Page, agent: Scripted) -> None:
    why = "draft at decoder.2 in fp16 is the best of 278 plans"
    page.ask("What is it?")
    agent.tell(Planned(mode=Mode.DRAFT, cut="decoder.2", wire=Wire.FLOAT16, predicted_ms=92, why=why))
    page.shows("#told", why)
    agent.tell(answered(SAID, cut="decoder.2", wire=Wire.FLOAT16))
    page.over()
    facts = dict(page.run(FACTS))
    assert facts == {
        "Mode": "draft",
        "Cut": "decoder.2",
        "Wire": "fp16",
        "Why": why,
        "Predicted on average": "92 ms",
        "Measured": "84 ms",
        "First word": "31 ms",
        "Up": "8.8 kB",
        "Down": "412 B",
        "Round trips": "2",
        "Energy": "420 mJ, estimated",
        "Worker": WORKER,
        "The big model\u2019s own words": "all",
    }
    # The bar's pieces are as long as their parts took.
    bars = page.run("return [...document.querySelectorAll('.time rect')].map((e) => +e.getAttribute('x'))")
    starts = [0, 3.1, 15.1, 37.1, 68.3]
    assert bars == pytest.approx([300 * start / 84.3 for start in starts], abs=0.01)
    assert page.text(".parts li:nth-child(4)") == "round trips31 ms"
    label = page.one(".stack:not(.time)").get_attribute("aria-label")
    assert label == "Share of the tokens: edge 0%, draft 100%, cloud 0%"
    page.shows("#totals", "Answers1")
    assert "420 mJ, estimated" in page.text("#totals")


@pytest.mark.parametrize(
    ("gate", "exact", "said"),
    [
        (
            Gated(
                group="one picture",
                calibrated=True,
                decision=Decision.KEPT,
                promised=0.02,
                agree="tokens",
                against="target",
            ),
            False,
            "kept: the big model says something else in at most 2% of such cases, compared by tokens",
        ),
        (
            Gated(
                group="one picture",
                calibrated=True,
                decision=Decision.KEPT,
                promised=0.05,
                agree="choice:yes,no",
                against="answers",
            ),
            False,
            "kept: it is wrong in at most 5% of such cases, compared by choice:yes,no",
        ),
        (
            Gated(group="one picture", calibrated=False, decision=Decision.PASSED),
            True,
            "passed on, as all that is asked like this",
        ),
        (
            Gated(group="one picture", calibrated=True, decision=Decision.NOT_ASKED),
            False,
            "not asked: nothing is promised",
        ),
    ],
)
def test_the_panel_says_what_is_promised(page: Page, agent: Scripted, gate: Gated, exact: bool, said: str) -> None:
    page.ask("What is it?")
    agent.tell(answered(SAID, gate=gate, exact=exact))
    page.over()
    facts = dict(page.run(FACTS))
    assert (facts["Gate"], facts["Asked as"]) == (said, "one picture")


def test_the_panel_tells_of_an_upstream_and_of_its_plan(page: Page, agent: Scripted) -> None:
    agent.workers, agent.upstream, agent.plans = (), "https://there/v1", True
    page.shows("#link", "https://there/v1 answers in place of workers")
    assert "No worker was given" not in page.text("#link")
    why = "Uploading the 9 kB image to the upstream is quickest: 830 ms, 700 of them for the upstream's first word"
    believed = Believed(
        rtt_ms=40.0, uplink_mbps=9.0, queue_ms=0.0, acceptance=0.8, answer_tokens=12, throttled=False, first_ms=700.0
    )
    plan = Forecast(
        mode=Mode.CLOUD,
        cut="image",
        wire=None,
        effort=None,
        predicted_ms=830.0,
        uncorrected_ms=830.0,
        correction=1.0,
        hindsight_ms=800.0,
        measured_ms=84.3,
        cold=False,
        why=why,
        believed=believed,
        runner_up=RunnerUp(mode=Mode.AUTO, cut="image", wire=None, predicted_ms=910.0),
    )
    page.ask("What is it?")
    agent.tell(Planned(mode=Mode.CLOUD, cut="image", wire=None, predicted_ms=830, why=why))
    page.shows("#told", why)
    agent.tell(answered(SAID, mode=Mode.AUTO, worker="https://there/v1", cut="image", exact=None, plan=plan))
    page.over()
    facts = dict(page.run(FACTS))
    assert (facts["Why"], facts["Runner-up"]) == (why, "auto at image, 910 ms")
    # Beside one answer's measurement stands what was expected of it, not of answers on average.
    times = [facts[name] for name in ("Predicted on average", "Expected of this answer", "Measured")]
    assert times == ["830 ms", "800 ms", "84 ms"]
    assert page.text(".time .tick") == "expected: 800 ms"
    assert (facts["Worker"], facts["The big model\u2019s own words"]) == ("https://there/v1", "not known")


def test_totals_are_estimated_if_any_part_of_them_was(page: Page, agent: Scripted) -> None:
    for estimated, total in ((False, "250 mJ, measured"), (True, "500 mJ, estimated"), (False, "750 mJ, estimated")):
        page.ask("What is it?")
        agent.tell(answered(SAID, energy=Energy(joules=0.25, estimated=estimated)))
        page.over()
        page.shows("#totals", total)


def test_on_a_phone_nothing_scrolls_sideways_and_the_panel_is_a_sheet(
    page: Page, agent: Scripted, picture: Path
) -> None:
    page.open(PHONE)

    def fits() -> bool:
        return bool(page.run("return document.documentElement.scrollWidth <= innerWidth && innerWidth === 360"))

    assert fits()
    page.ask("What is it? " + "x" * 200, picture)
    long = spoken("A " + "w" * 120 + " word", Provenance.CLOUD)
    agent.tell(Guessed(0, "A"), Settled(0, long), answered(long))
    page.over()
    assert fits()
    assert not page.one("#panel").is_displayed()
    page.one("#open-panel").click()
    page.until(lambda: page.one("#panel").is_displayed())
    assert page.focus() == "panel"
    assert page.one("#panel").get_attribute("aria-modal") == "true"
    assert page.run("return document.getElementById('talk').inert")
    assert fits()
    page.one("#panel").send_keys(Keys.ESCAPE)
    page.until(lambda: not page.one("#panel").is_displayed())
    assert page.focus() == "open-panel"


def test_no_motion_for_those_who_want_none(page: Page, agent: Scripted) -> None:
    page.open(prefers_reduced_motion="reduce")
    page.ask("What is it?")
    agent.tell(Settled(0, SAID[:3]))
    page.shows(".text", "A red seven")
    assert page.run("return document.getAnimations().length") == 0


def test_the_colours_follow_the_system(page: Page) -> None:
    light = page.one("body").value_of_css_property("background-color")
    page.open(prefers_color_scheme="dark")
    dark = page.one("body").value_of_css_property("background-color")
    assert sum(int(c) for c in light[5:-1].split(",")[:3]) > 700
    assert sum(int(c) for c in dark[5:-1].split(",")[:3]) < 100


def test_the_next_question_need_not_wait_for_a_verdict_on_the_last(page: Page, agent: Scripted) -> None:
    lost = Lost(worker=WORKER, why="silent", position=0, silent_ms=1200, next=None)
    page.ask("What is it?")
    agent.tell(lost, Settled(0, (*spoken("A tree", Provenance.EDGE), Token(2, "", Provenance.EDGE))))
    page.shows(".notices", "waiting for the link, to have the end verified")
    assert "link lost before the first word; the device went on alone" in page.text(".notices")
    page.ask("And behind it?")
    page.until(lambda: len(agent.asked) == 2)
    agent.tell(answered(SAID))
    page.over()
    assert agent.asked[1].messages[1].text == "A tree"
    assert "the end was not verified by the cloud" in page.text(".turn:nth-child(2) .notices")


def test_an_answer_that_ended_at_its_most_tokens_need_not_be_verified_to_ask_on(page: Page, agent: Scripted) -> None:
    lost = Lost(worker=WORKER, why="silent", position=0, silent_ms=1200, next=None)
    page.ask("What is it?")
    most = agent.asked[0].max_tokens
    assert most is not None
    agent.tell(lost, Settled(0, spoken(" ".join(["tree"] * (most - 1)), Provenance.EDGE)))
    page.shows(".notices", "link lost before the first word; the device went on alone")
    assert "waiting for the link" not in page.text(".notices")
    agent.tell(Settled(most - 1, spoken("s", Provenance.EDGE)))
    page.shows(".notices", "waiting for the link, to have the end verified")
    page.ask("And behind it?")
    page.until(lambda: len(agent.asked) == 2)
    agent.tell(answered(SAID))
    page.over()


@pytest.mark.parametrize("plans", [True, False])
def test_exact_can_be_asked_for_where_the_agent_plans_and_so_keeps_to_it(
    page: Page, agent: Scripted, plans: bool
) -> None:
    agent.plans = plans
    page.open()
    assert page.one("#exact").is_enabled() == plans
    page.one("#exact").click()
    page.ask("What is it?")
    agent.tell(answered(SAID))
    page.over()
    assert (agent.asked[0].mode, agent.asked[0].exact) == (Mode.AUTO, plans)
