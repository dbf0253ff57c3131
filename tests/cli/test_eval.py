"""`cutline eval`: from a folder of pictures and a CSV of answers to a report, killed half-way and gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.demo.cards import Split
from cutline.demo.requests import requests

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two of the demo's cards with their questions, one of which is told a wrong answer, and a torn line."""
    lines = ["image,question,answer,group"]
    for number, request in enumerate(requests(Split.EVALUATION, 2, seed=0)):
        name = f"{number // 6}.png"
        (tmp_path / name).write_bytes(request.image)
        answer = "wrong" if number == 4 else request.question.answer
        lines.append(f'{name},"{request.question.text}","{answer}",{request.question.kind}')
    lines.insert(3, "none.png,What?,,")
    path = tmp_path / "cards.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_becomes_a_report(run: Run, data: Path) -> None:
    page = data.with_name("report.html")
    asked = ("eval", data, "--modes", "edge", "--limit-ms", "60000", "--json")
    first = run(*asked, "--report", page)
    assert first.code == 0, first.err
    assert "cards.csv line 4: there is no file 'none.png'" in first.err
    found = json.loads(first.out)
    edge = found["modes"]["edge"]
    assert (found["questions"], found["skipped"], edge["known"]) == (12, 1, 12)
    assert edge["score"]["value"] == pytest.approx(11 / 12)
    assert (edge["within"], edge["bytes_up"], edge["same"]) == (1.0, 0.0, None)
    assert edge["calibration_error"] is not None
    assert set(edge["groups"]) == {"read", "count", "colour", "digit", "sum", "describe"}
    assert page.read_text().count("<svg") == 3
    records = data.with_name("cards.csv.answers.jsonl")
    content = records.read_bytes()
    assert run(*asked).out == first.out, "what is known is not asked again"
    assert records.read_bytes() == content
    records.write_bytes(content[: len(content) // 2])  # as a kill leaves it
    again = run(*asked)
    assert "going on behind line" in again.err
    texts = [[json.loads(line).get("text") for line in one.splitlines()] for one in (content, records.read_bytes())]
    assert texts[0] == texts[1]
    assert json.loads(again.out)["modes"]["edge"]["score"] == edge["score"]
    scored = json.loads(run(*asked, "--score", "number", "--against", data).out)
    assert scored["score"] == "number"
    assert scored["drops"]["edge"]["value"] == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--modes", "edge,fast"), "no mode 'fast'"),
        (("--score", "best"), "no score 'best'"),
        (("--agent", "http://127.0.0.1:1", "--worker", "127.0.0.1:2"), "--agent asks a running agent"),
        (("--cards", "0"), "--cards is 0"),
    ],
)
def test_bad_options_are_said_in_a_line(run: Run, options: tuple[str, ...], said: str) -> None:
    result = run("eval", *options)
    assert result.code == 2, result.err
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1


def compared(run: Run, out: Path, worker: str, cards: int) -> dict[str, Any]:
    """The figures of the demo's questions, in every mode."""
    result = run("eval", "--cards", str(cards), "--score", "exact", "--worker", worker, "--out", out, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)["modes"]  # type: ignore[no-any-return]


def test_modes_stand_beside_cloud(run: Run, worker: str, tmp_path: Path) -> None:
    modes = compared(run, tmp_path / "answers", worker, 1)
    assert list(modes) == ["edge", "cloud", "draft", "auto"]
    assert {mode: one["asked"] for mode, one in modes.items()} == {"edge": 0.0, "cloud": 1.0, "draft": 1.0, "auto": 0.0}
    for name in ("cloud", "draft"):
        assert (modes[name]["same"], modes[name]["to_cloud"]["value"]) == (1.0, 0.0)
        assert modes[name]["bytes_up"] > 1000, "nothing of a question serves the next"


@pytest.mark.proof
def test_the_demo_s_questions_give_readmes_table(run: Run, worker: str, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    table = re.findall(r"^\| ([^|]*?)((?: \|[^|]*){4}) \|$", readme.partition("over emulated 4G")[2], re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")[1:]] for name, cells in table}
    modes = compared(run, tmp_path / "answers", worker, 50).values()
    assert told["right answers"] == [f"{one['score']['value']:.1%}" for one in modes]
    assert told["exactly the target's tokens"] == [f"{one['same']:.1%}" for one in modes]
    assert told["bytes up"] == [f"{one['bytes_up']:.0f}" for one in modes]
    assert told["round trips, for 8.8 tokens"] == [f"{one['rounds']:.2f}" for one in modes]
    assert told["asked the worker"] == [f"{one['asked']:.0%}" for one in modes]
    assert {f"{one['tokens']:.1f}" for one in modes} == {"8.8"}
