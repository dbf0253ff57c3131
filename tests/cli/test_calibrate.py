"""`cutline calibrate`: prices of cuts and wire formats. The gate's own tests: tests/edge/generation/test_gate.py."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from cutline.cli.calibration.pricing import KEPT, PricedQuestion, PricePoint, price, ways
from cutline.cli.calibration.samples import AT_ONCE
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import open_gate
from cutline.edge.generation.result import Answer, Provenance, Token
from cutline.errors import BundleError, WorkerUnavailable
from cutline.models.bundle import JOURNAL, MANIFEST, Bundle, read_manifest, write_calibration, write_manifest
from cutline.models.prices import Leak, Price, Prices, open_prices
from cutline.testing.agent import spoken
from cutline.testing.models.manifests import edit_manifest

Run = Callable[..., Any]

FEW = PLAIN
COUNTED = ("threshold", "requests", "kept", "disagreed", "populations")
CUTS = "decoder.1, image,connector"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The demo's target in a folder that may change."""
    return Path(shutil.copytree(TARGET, tmp_path / "target"))


def answer(text: str, ids: list[int], sent: int) -> Answer:
    return msgspec.structs.replace(
        spoken(text),
        tokens=[Token(token, "", Provenance.CLOUD) for token in ids],
        mode=Mode.SPLIT,
        bytes_up=sent,
        exact=False,
        worker="w:1",
        cut="connector",
        wire=Wire.INT4,
        complete=True,
    )


def test_a_price_is_what_was_counted() -> None:
    asked = [
        PricedQuestion(b"", "a", "3"),
        PricedQuestion(b"", "b", "red"),
        PricedQuestion(b"", "c"),
        PricedQuestion(b"", "d"),
    ]
    answers = [answer("3", [3, 9], 10), answer("blue", [5, 9], 20), answer("x", [7, 7, 9], 30), answer("", [9], 40)]
    exact = [(3, 9), (6, 9), (7, 8, 9), (4, 4, 9)]
    found = price(PricePoint("connector", Wire.INT4), asked, answers, exact)
    assert (found.cut, found.wire, found.keep_image_tokens) == ("connector", Wire.INT4, 1.0)
    assert found.bytes_up == 25
    assert found.answers == 1 / 4
    assert found.tokens == (2 + 1 + 2 + 0) / 10
    assert found.right == 1 / 2  # of the two whose answers are known
    assert price(PricePoint("connector"), asked[2:], answers[2:], exact[2:]).right is None


def test_every_way_to_ask_is_taken_once() -> None:
    found = list(ways(["image", "connector", "decoder.0", "head"]))
    assert len(found) == len(set(found)) == 1 + 3 * len(Wire) + len(KEPT)
    for way in found:  # no way that a question refuses
        assert way.question(PricedQuestion(b"", "what")).cut == way.cut


def test_prices_are_measured_and_kept(run: Run, bundle: Path, target: Path, card: Path, worker: str) -> None:
    identity = Bundle.open(target).manifest.identity
    leaks = (Leak(cut="decoder.0", wire=Wire.INT8, recovered=0.5),)
    write_calibration(Bundle.open(target), Prices(questions=1, prices=(), leaks=leaks))
    ran = run("calibrate", "--bundle", bundle, "--target", target, "--worker", worker, "--cards", "2", "--price-cards",
        "1", "--price-cuts", CUTS, "--threads", "1", "--groups", FEW, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["groups"][PLAIN]["requests"] == open_gate(Bundle.open(bundle)).groups[PLAIN].requests == 12
    opened = Bundle.open(target)
    prices = open_prices(opened)
    assert prices is not None
    assert (opened.manifest.identity, prices.questions) == (identity, 6)
    assert prices.leaks == leaks, "they were measured apart"
    assert told["prices"]["questions"] == 6
    assert [(one["cut"], one["wire"]) for one in told["prices"]["prices"]] == list(prices.agreement)
    assert list(prices.agreement) == [
        ("image", Wire.FLOAT32),
        *(("connector", wire) for wire in Wire),
        *(("decoder.1", wire) for wire in Wire),
    ]
    for one in prices.prices:
        if one.wire is Wire.FLOAT32:  # the law
            assert (one.answers, one.tokens) == (1.0, 1.0)
        assert one.right is not None
        assert 0 < one.bytes_up < 50_000
    sizes = {one.wire: one.bytes_up for one in prices.prices if one.cut == "connector"}
    assert sizes[Wire.FLOAT32] > sizes[Wire.FLOAT16] == sizes[Wire.BFLOAT16] > sizes[Wire.INT8] > sizes[Wire.INT4]
    ran = run("ask", card, "how many", "--bundle", bundle, "--target", target, "--worker", worker, "--mode", "split",
        "--cut", "connector", "--wire", "int8", "--json")  # fmt: skip
    assert json.loads(ran.out)["bytes_up"] == pytest.approx(sizes[Wire.INT8], abs=150)  # a digest, a beat


def test_a_worker_is_run_here_where_none_is_given(run: Run, bundle: Path, target: Path, tmp_path: Path) -> None:
    one = next(requests(Split.CALIBRATION, 1, seed=1))
    (tmp_path / "card.png").write_bytes(one.image)
    line = {"image": "card.png", "question": one.question.text, "answer": "not this"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    ran = run("calibrate", "--bundle", bundle, "--target", target, "--data", tmp_path / "questions.jsonl",
        "--price-cuts", "decoder.0", "--groups", FEW)  # fmt: skip
    assert (ran.code, ran.out) == (0, "")
    prices = open_prices(Bundle.open(target))
    assert prices is not None
    assert {one.right for one in prices.prices} == {0.0}
    assert [one.keep_image_tokens for one in prices.prices if one.keep_image_tokens < 1] == list(KEPT)
    assert "cutline bundle show" in " ".join(ran.err.split())
    assert "━" not in ran.err  # no bars where nobody looks


def test_without_the_targets_bundle_there_are_no_prices(run: Run, bundle: Path, worker: str) -> None:
    few = ("calibrate", "--bundle", bundle, "--worker", worker, "--cards", "1", "--groups", FEW)
    ran = run(*few)
    assert ran.code == 0
    assert "as --target" in " ".join(ran.err.split())
    ran = run(*few, "--price-cards", "0", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["prices"] is None


def test_what_cannot_be_measured_is_one_line(run: Run, bundle: Path, target: Path) -> None:
    both = ("calibrate", "--bundle", bundle, "--target", target)
    assert "cannot be cut at 'vision.99'; cuts: image, vision.0" in run(*both, "--price-cuts", "vision.99").failed(2)
    assert "there is no 'three pictures'; a group is made of one picture, " in run(
        *both, "--groups", "three pictures"
    ).failed(2)
    assert "no group is all of" in run(*both, "--groups", "one picture, two pictures").failed(2)
    assert "--samples is 0" in run(*both, "--samples", "0").failed(2)
    assert "--price-cards is -1" in run(*both, "--price-cards", "-1").failed(2)
    assert "drafts for another target" in run("calibrate", "--bundle", bundle, "--target", DRAFTER).failed(5)
    (target / "image-spans.data").write_bytes(b"else")
    assert "hash differs" in run(*both).failed(3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_cannot_be_written_to_is_said_before_the_work(run: Run, bundle: Path, target: Path) -> None:
    target.chmod(0o500)
    assert "as --target" in run("calibrate", "--bundle", bundle, "--target", target).failed(2)


@pytest.mark.parametrize(
    "change",
    [{"answers": 1.5}, {"bytes_up": -1}, {"wire": "fp64"}, {"keep_image_tokens": 2.0}, {"more": 1}],
    ids=str,
)
def test_prices_that_do_not_read_are_refused(target: Path, change: dict[str, Any]) -> None:
    one = Price(cut="image", wire=Wire.FLOAT32, bytes_up=1.0, answers=1.0, tokens=1.0, right=None)
    bundle = Bundle.open(target)
    write_calibration(bundle, Prices(questions=1, prices=(one,)))
    assert open_prices(Bundle.open(target)) == Prices(questions=1, prices=(one,))
    edit_manifest(target, lambda said: said["calibration"]["prices"][0].update(change))
    with pytest.raises(BundleError, match="calibrate again"):
        open_prices(Bundle(target, read_manifest(target)))


def test_a_target_that_was_never_calibrated_has_no_prices(target: Path) -> None:
    bare = msgspec.structs.replace(read_manifest(target), calibration=None)
    assert open_prices(Bundle(target, write_manifest(target, bare))) is None


def test_a_calibration_goes_on_where_it_was_interrupted(
    run: Run, bundle: Path, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked twice, and the gate is that of a calibration in one go."""
    real, asked, lasts = Agent.answer, list[Request](), [10**9]

    async def answer(agent: Agent, question: Request) -> Answer:
        if len(asked) >= lasts[0]:
            raise WorkerUnavailable("it is gone")
        asked.append(question)
        return await real(agent, question)

    monkeypatch.setattr(Agent, "answer", answer)
    few = ("calibrate", "--worker", worker, "--cards", "1", "--groups", FEW, "--price-cards", "0", "--threads", "1")
    before = (bundle / MANIFEST).read_bytes()
    whole = Path(shutil.copytree(bundle, bundle.with_name("whole")))
    assert run(*few, "--bundle", whole, "--timeout", "432").code == 0
    total = len(asked)
    assert {question.timeout for question in asked} == {432.0}
    asked.clear()
    lasts[0] = total // 2
    assert "it is gone" in run(*few, "--bundle", bundle).failed(4)
    assert (bundle / MANIFEST).read_bytes() == before
    Bundle.open(bundle)
    lasts[0] = 10**9
    ran = run(*few, "--bundle", bundle)
    (said,) = re.findall(r"going on with (\d+) answers", ran.err)
    assert total // 2 - AT_ONCE < int(said) <= total // 2, "all but those that were on their way"
    assert len(asked) == total // 2 + total - int(said)
    assert open_gate(Bundle.open(bundle)) == open_gate(Bundle.open(whole))
    assert not (bundle / JOURNAL).exists()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Questions about two cards, of two groups, whose answers are known."""
    lines = []
    for number, one in enumerate(requests(Split.CALIBRATION, 2, seed=1)):
        (tmp_path / f"{number // 6}.png").write_bytes(one.image)
        line = {"image": f"{number // 6}.png", "question": one.question.text, "answer": one.question.answer}
        lines.append(json.dumps(line | {"group": "left" if number % 2 else "right"}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return tmp_path / "questions.jsonl"


def test_a_gate_may_be_held_against_known_answers_without_a_worker(run: Run, bundle: Path, questions: Path) -> None:
    ran = run("calibrate", "--bundle", bundle, "--data", questions, "--groups", FEW, "--against", "answers", "--agree",
        "text", "--risk", "0.9", "--price-cards", "0", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    group = json.loads(ran.out)["groups"][PLAIN]
    assert (group["agree"], group["against"], group["requests"]) == ("text", "answers", 12)
    assert {name: one["requests"] for name, one in group["populations"].items()} == {"left": 6, "right": 6}
    assert sum(one["kept"] for one in group["populations"].values()) == group["kept"] > 0
    told = json.loads(ran.out)["populations"][PLAIN]
    assert told["populations"]["left"]["kept"]["count"] == 6
    assert 0 <= told["bias_kept"] <= 1
    assert json.loads(run("bundle", "show", bundle, "--json").out)["populations"][PLAIN] == told
    shown = " ".join(run("bundle", "show", bundle).out.split())
    assert "differ from the known answers, by text" in shown
    assert "left: " in shown
    assert "bias: " in shown


def test_a_gate_may_be_held_against_a_function_of_ones_own(run: Run, bundle: Path, questions: Path) -> None:
    (questions.parent / "judge.py").write_text("def same(ours, theirs):\n    return True\n")
    few = ("calibrate", "--bundle", bundle, "--data", questions, "--groups", FEW, "--against", "answers", "--agree")
    ran = run(*few, f"{questions.parent}/judge.py:same", "--risk", "0.9", "--price-cards", "0", "--json")
    assert ran.code == 0, ran.err
    group = json.loads(ran.out)["groups"][PLAIN]
    assert (group["agree"], group["kept"], group["disagreed"]) == ("judge.py:same", 12, 0)
    asked = ("edge", "--bundle", bundle, "--worker", "127.0.0.1:1", "--audit", "0.1", "--insecure")
    assert "judge.py:same, which is not on this device" in run(*asked).failed(2)


class Upstream(http.server.BaseHTTPRequestHandler):
    """A server that says what is known to be right, in words of its own."""

    answers: ClassVar[dict[tuple[str, str], str]] = {}  # by picture and question

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        picture, text = asked["messages"][-1]["content"]
        answer = self.answers[picture["image_url"]["url"].partition("base64,")[2], text["text"]]
        said = {"role": "assistant", "content": f" {answer}!"}
        body = json.dumps({"choices": [{"message": said, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_gate_may_be_held_against_an_upstream(run: Run, bundle: Path, questions: Path, upstream: str) -> None:
    for line in map(json.loads, questions.read_text().splitlines()):
        image = base64.b64encode((questions.parent / line["image"]).read_bytes()).decode()
        Upstream.answers[image, line["question"]] = line["answer"]
    few = ("calibrate", "--bundle", bundle, "--data", questions, "--groups", FEW, "--agree", "text", "--risk", "0.9",
        "--price-cards", "0", "--json")  # fmt: skip
    ran = run(*few, "--upstream", upstream, "--upstream-model", "big")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    group = told["groups"][PLAIN]
    assert (group["agree"], group["against"], group["requests"]) == ("text", "upstream:big", 12)
    assert (told["prices"], group["tokens"]) == (None, None)
    ran = run(*few, "--against", "answers")
    known = json.loads(ran.out)["groups"][PLAIN]
    assert [group[name] for name in COUNTED] == [known[name] for name in COUNTED]
    assert group["kept"]


def test_what_cannot_be_compared_is_one_line(run: Run, bundle: Path, questions: Path) -> None:
    few, to = ("calibrate", "--bundle", bundle), ("--upstream", "http://127.0.0.1:1/v1")
    assert "there is no measure 'mood'" in run(*few, "--agree", "mood").failed(2)
    assert "give target or answers" in run(*few, "--against", "me").failed(2)
    assert "another --agree, such as text" in run(*few, *to).failed(2)
    assert "have its tokens" in run(*few, "--against", "answers", "--data", questions).failed(2)
    assert "give that" in run(*few, "--against", "answers", "--agree", "text").failed(2)
    assert "asks no upstream" in run(*few, *to, "--against", "answers", "--agree", "text").failed(2)
    assert "leave out one of them" in run(*few, *to, "--agree", "text", "--target", TARGET).failed(2)
    assert "in place of workers" in run(*few, *to, "--agree", "text", "--worker", "127.0.0.1:1").failed(2)
    questions.write_text("\n".join(json.dumps({"image": "0.png", "question": "?", "group": str(n)}) for n in range(51)))
    assert "more than 50 names" in run(*few, "--data", questions, "--price-cards", "0").failed(2)
