from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.generation.conditions import GROUPS, PLAIN
from cutline.edge.generation.gate import open_gate
from cutline.models.bundle import Bundle, write_manifest

Run = Callable[..., Any]
Start = Callable[..., Any]

COMMANDS = (
    "ask",
    "bundle",
    "calibrate",
    "cloud",
    "demo",
    "doctor",
    "edge",
    "export",
    "plan",
    "profile",
    "top",
    "watch",
)
MODES = ("edge", "cloud", "draft", "auto")
QUESTION = "Describe the card."


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=str)
def test_help_is_what_comes_without_a_command(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.err) == (0, "")
    for command in COMMANDS:
        assert command in ran.out


@pytest.mark.parametrize("command", [*COMMANDS, "bundle show", "bundle copy", "profile link"])
def test_every_command_shows_an_example(run: Run, command: str) -> None:
    ran = run(*("bundle show" if command == "bundle" else command).split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: cutline {command}" in ran.out


def numbers(answer: dict[str, Any], *names: str) -> list[type]:
    return [type(answer[name]) for name in names]


def check_contract(answer: dict[str, Any], mode: str) -> None:
    """Every key of `ask --json`, and what it holds."""
    assert {
        "text",
        "tokens",
        "mode",
        "latency_ms",
        "ttft_ms",
        "bytes_up",
        "bytes_down",
        "rounds",
        "drafted",
        "accepted",
        "exact",
        "worker",
        "cut",
        "wire",
    } <= set(answer)
    assert answer["mode"] == mode
    assert isinstance(answer["text"], str)
    assert set(numbers(answer, "latency_ms", "ttft_ms")) == {float}
    assert set(numbers(answer, "bytes_up", "bytes_down", "rounds", "drafted", "accepted")) == {int}
    assert isinstance(answer["exact"], bool)
    assert 0 <= answer["ttft_ms"] <= answer["latency_ms"]
    assert answer["tokens"]
    for token in answer["tokens"]:
        assert set(token) == {"id", "text", "source"}
        assert isinstance(token["id"], int)
        assert isinstance(token["text"], str)
        assert token["source"] in ("edge", "draft", "cloud")
    assert "".join(token["text"] for token in answer["tokens"]).strip() == answer["text"]
    alone = answer["worker"] is None
    assert answer["exact"] is not alone
    assert (answer["rounds"] == 0) is alone
    assert (answer["bytes_up"] == 0) is alone
    sources = {token["source"] for token in answer["tokens"]}
    assert sources == {"edge"} if alone else "edge" not in sources
    if mode == "edge":
        assert alone
    if mode == "cloud":
        assert sources == {"cloud"}


def test_one_object_of_the_documented_keys_in_every_mode(run: Run, card: Path, worker: str) -> None:
    exact = set()
    for mode in MODES:
        ran = run("ask", card, QUESTION, "--mode", mode, "--worker", worker, "--json")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.count("\n") == 1
        answer = json.loads(ran.out)
        check_contract(answer, mode)
        if answer["exact"]:
            assert answer["worker"] == worker
            exact.add(tuple(token["id"] for token in answer["tokens"]))
    assert len(exact) == 1, "modes that are exact agree"


def test_a_cut_changes_no_token(run: Run, start: Start, card: Path, worker: str) -> None:
    def ask(*options: str, mode: str) -> dict[str, Any]:
        ran = run("ask", card, QUESTION, "--json", "--mode", mode, *options)
        assert (ran.code, ran.err) == (0, "")
        answer: dict[str, Any] = json.loads(ran.out)
        return answer

    whole = ask("--worker", worker, mode="cloud")
    assert (whole["cut"], whole["wire"]) == ("image", None)
    running = start("edge", "--insecure", "--worker", worker, "--listen", "127.0.0.1:0", "--provider", "cpu")
    url = f"http://{running.address()}"
    for mode, cut in (("split", "vision.2"), ("split", "decoder.2"), ("draft", "decoder.1"), ("draft", "head")):
        for way in (("--worker", worker, "--provider", "cpu"), ("--agent", url)):
            answer = ask(*way, "--cut", cut, mode=mode)
            check_contract(answer, mode)
            assert [token["id"] for token in answer["tokens"]] == [token["id"] for token in whole["tokens"]]
            assert (answer["cut"], answer["wire"], answer["exact"]) == (cut, "fp32", True)
    named = whole["tokens"][2]["id"], whole["tokens"][4]["id"]
    for way in (("--worker", worker), ("--agent", url)):
        short = ask(*way, *(word for one in named for word in ("--stop-token-ids", str(one))), mode="draft")
        assert [token["id"] for token in short["tokens"]] == [token["id"] for token in whole["tokens"][:3]]
    merged = ask("--agent", url, "--cut", "decoder.2", "--keep-image-tokens", "0.5", mode="split")
    assert not merged["exact"]


def test_profiles_make_auto_plan(run: Run, start: Start, card: Path, worker: str) -> None:
    profiles = ("--edge-profile", "raspberry-pi-5", "--cloud-profile", "cpu-server", "--link", "wifi")
    whole = json.loads(run("ask", card, QUESTION, "--mode", "cloud", "--worker", worker, "--json").out)
    assert whole["plan"] is None
    running = start("edge", "--insecure", "--worker", worker, "--listen", "127.0.0.1:0", *profiles)
    url = f"http://{running.address()}"
    for way in (("--worker", worker, *profiles), ("--agent", url)):
        ran = run("ask", card, QUESTION, "--exact", "--json", *way)
        assert (ran.code, ran.err) == (0, "")
        answer = json.loads(ran.out)
        check_contract(answer, "auto")
        assert answer["exact"]
        assert [token["id"] for token in answer["tokens"]] == [token["id"] for token in whole["tokens"]]
        plan = answer["plan"]
        assert (plan["cut"], plan["wire"]) == (answer["cut"], answer["wire"])
        assert plan["measured_ms"] == answer["latency_ms"]
        assert plan["predicted_ms"] > 0
        told = run("ask", card, QUESTION, "--exact", "--verbose", *way)
        assert re.search(r"planned (cloud|split|draft) at .*: \d+ ms predicted, \d+ measured", told.err)
        stays = json.loads(run("ask", card, QUESTION, "--image-must-stay", "--json", *way).out)
        assert stays["plan"]["cut"] not in ("image", "vision.0")
        assert "no plan keeps to 1 ms" in run("ask", card, QUESTION, "--max-latency-ms", "1", *way).failed(2)
    assert "needs a worker" in run("ask", card, QUESTION, *profiles).failed(2)


def test_a_seed_gives_the_same_answer_in_every_exact_mode(run: Run, card: Path, worker: str) -> None:
    def ask(mode: str, seed: int) -> list[int]:
        options = (
            "--temperature",
            "0.8",
            "--top-k",
            "40",
            "--top-p",
            "0.95",
            "--seed",
            str(seed),
            "--max-tokens",
            "20",
        )
        ran = run("ask", card, QUESTION, "--mode", mode, "--worker", worker, "--json", *options)
        assert ran.code == 0, ran.err
        return [token["id"] for token in json.loads(ran.out)["tokens"]]

    for seed in (1, 2**62):
        assert ask("cloud", seed) == ask("draft", seed) == ask("auto", seed)
        assert len(ask("edge", seed)) <= 20


def test_an_answer_for_people(run: Run, card: Path, worker: str) -> None:
    told = json.loads(run("ask", card, QUESTION, "--mode", "draft", "--worker", worker, "--json").out)
    ran = run("ask", card, QUESTION, "--mode", "draft", "--worker", worker)
    assert (ran.code, ran.err, ran.out) == (0, "", told["text"] + "\n")
    ran = run("ask", card, QUESTION, "--mode", "draft", "--worker", worker, "--verbose")
    assert ran.out == told["text"] + "\n"
    assert ran.err.startswith(f"draft · worker {worker} · ")
    assert "this device alone" in run("ask", card, QUESTION, "--mode", "edge", "--verbose").err


def test_any_bundle_is_asked(run: Run, card: Path, bundle: Path) -> None:
    ran = run("ask", card, QUESTION, "--mode", "edge", "--bundle", bundle, "--json", "--threads", "1")
    assert ran.code == 0, ran.err


def test_a_running_agent_is_asked(run: Run, start: Start, card: Path, worker: str) -> None:
    agent = start("edge", "--insecure", "--listen", "127.0.0.1:0", "--worker", worker, "--threads", "1")
    url = f"http://{agent.address()}"
    for mode in MODES:
        there = run("ask", card, QUESTION, "--mode", mode, "--agent", url, "--json")
        here = run("ask", card, QUESTION, "--mode", mode, "--worker", worker, "--json")
        assert (there.code, there.err) == (0, "")
        answers = [json.loads(ran.out) for ran in (there, here)]
        check_contract(answers[0], mode)
        # Where a token came from depends on who was first, the tokens themselves do not.
        assert len({tuple(token["id"] for token in answer["tokens"]) for answer in answers}) == 1
    image = card.with_name("image.png")
    image.write_bytes(b"no image")
    run("ask", image, QUESTION, "--agent", url).failed(2)
    run("ask", card, " ", "--agent", url).failed(2)
    run("ask", card, "why " * 300, "--agent", url).failed(2)
    assert run("ask", card, QUESTION, "--agent", url).code == 0, "and the agent goes on"


def test_calibration_is_measured_and_kept(run: Run, bundle: Path, worker: str) -> None:
    identity = Bundle.open(bundle).manifest.identity
    wanted = ("--groups", "one picture, picture first, no system turn")
    before = open_gate(Bundle.open(bundle)).groups
    ran = run("calibrate", "--bundle", bundle, "--worker", worker, "--cards", "1", "--json", "--threads", "1", *wanted)
    assert ran.code == 0, ran.err
    gate = open_gate(Bundle.open(bundle))
    assert json.loads(ran.out)["groups"] == msgspec.to_builtins(gate)["groups"]
    # Every question of a card once in each place of a conversation, as far as one fits the models' context.
    assert [gate.groups[name].requests for name in GROUPS[:3]] == [6, 6, 6]
    assert {name: one for name, one in gate.groups.items() if name not in GROUPS[:3]} == {
        name: one for name, one in before.items() if name not in GROUPS[:3]
    }
    assert Bundle.open(bundle).manifest.identity == identity


def test_calibration_on_ones_own_questions(run: Run, bundle: Path, tmp_path: Path, worker: str) -> None:
    lines = []
    for index, one in enumerate(list(requests(Split.CALIBRATION, 1, seed=1))[:3]):
        (tmp_path / f"{index}.png").write_bytes(one.image)
        lines.append(json.dumps({"image": f"{index}.png", "question": one.question.text}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n\n")
    given = ("--data", tmp_path / "questions.jsonl", "--groups", "one picture", "--system", "Be brief.")
    ran = run("calibrate", "--bundle", bundle, "--worker", worker, *given)
    assert (ran.code, ran.out) == (0, "")
    # Three answers prove nothing, so none may stand.
    assert "every answer will be verified; 3 samples, about 42 more" in " ".join(ran.err.split())
    groups = open_gate(Bundle.open(bundle)).groups
    assert [(groups[name].requests, groups[name].kept) for name in GROUPS[:12]] == [(3, 0)] * 12


def test_a_bundle_that_was_never_calibrated_keeps_nothing(run: Run, card: Path, tmp_path: Path, worker: str) -> None:
    """With a worker every answer is verified; alone it cannot decide."""
    bundle = Path(shutil.copytree(DRAFTER, tmp_path / "bare"))
    write_manifest(bundle, msgspec.structs.replace(Bundle.open(DRAFTER).manifest, calibration=None))
    asked = ("ask", card, QUESTION, "--bundle", bundle)
    answer = json.loads(run(*asked, "--worker", worker, "--json").out)
    assert answer["exact"]
    nothing = dict.fromkeys(("promised", "agree", "against", "audit"))
    assert answer["gate"] == {"group": PLAIN, "calibrated": False, "decision": "passed on", **nothing}
    assert "cutline calibrate" in run(*asked).failed(3)
    assert run("ask", card, QUESTION, "--bundle", bundle, "--mode", "edge").code == 0
