"""`cutline calibrate`: prices of cuts and wire formats. The gate's own tests: tests/edge/generation/test_gate.py."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
