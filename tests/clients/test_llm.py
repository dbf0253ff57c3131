"""The command-line tool `llm`, told of an agent in a file as its documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from llm.cli import cli

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served

Cards = tuple[CardRequest, CardRequest]


@pytest.fixture(scope="module")
def folder(agent: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own folder, which knows the agent."""
    made = tmp_path_factory.mktemp("llm")
    (made / "extra-openai-models.yaml").write_text(
        "- model_id: cutline\n"
        "  model_name: cutline\n"
        f"  api_base: {agent.url}/v1\n"
        "  vision: true\n"
        "  supports_schema: true\n"
    )
    return made


@pytest.fixture
def asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a prompt about pictures; gives what it printed."""
    monkeypatch.setenv("LLM_USER_PATH", str(folder))

    def run(*arguments: str, cards: tuple[CardRequest, ...] = ()) -> str:
        files = []
        for index, card in enumerate(cards):
            file = tmp_path / f"card{index}.png"
            file.write_bytes(card.image)
            files += ["-a", str(file)]
        got = CliRunner().invoke(cli, ["-m", "cutline", *arguments, *files], catch_exceptions=False)
        assert got.exit_code == 0, got.output
        return got.output.strip()

    return run


def test_it_asks_and_streams(agent: Served, cards: Cards, asked: Callable[..., str]) -> None:
    assert asked("Describe the card.", "--no-log", cards=cards[:1]) == agent.target_says(), "streamed, as it does"
    assert asked("Describe the card.", "--no-log", "--no-stream", "-s", "Be brief.", cards=cards) == agent.target_says()
    assert len(agent.asked[-1].images) == 2
    assert agent.asked[-1].messages[0].role == "system"


def test_it_fills_in_a_schema(agent: Served, cards: Cards, asked: Callable[..., str]) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    said = asked("Describe.", "--no-log", "--schema", json.dumps(schema), cards=cards[:1])
    assert json.loads(said)["colour"] in {"red", "blue"}
    assert said == agent.target_says()


def test_it_goes_on(agent: Served, cards: Cards, asked: Callable[..., str]) -> None:
    asked("Describe the card.", cards=cards[:1])
    asked("And now?", "-c")
    assert [one.role for one in agent.asked[-1].messages] == ["user", "assistant", "user"]
    assert agent.asked[-1].images == (cards[0].image,)
