"""`import cutline`: its names are the documented ones, they cost nothing until used, and every example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cutline
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.models.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "python.md"
CARD = (DRAFTER.parents[1] / "examples" / "card1.png").read_bytes()


def run(code: str) -> str:
    environment = {"PYTHONPATH": str(ROOT / ".dev"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_names_are_the_documented_ones() -> None:
    table = PAGE.read_text().partition("## The names")[2]
    documented = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert documented == set(cutline.__all__)
    for name in cutline.__all__:
        assert getattr(cutline, name) is not None
    assert set(cutline.__all__) <= set(dir(cutline))
    with pytest.raises(AttributeError, match="no name 'agent'"):
        cutline.agent  # noqa: B018 (it is looked up)


def test_nothing_is_loaded_before_it_is_used() -> None:
    heavy = "('torch', 'numpy', 'onnxruntime', 'grpc', 'msgspec', 'httpx', 'PIL')"
    loaded = run(f"import sys, cutline; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]\n"
    used = run(
        "import sys, cutline; cutline.Request, cutline.Agent, cutline.BlockingAgent; print('torch' in sys.modules)"
    )
    assert used == "False\n"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (PAGE, ["exact: True", "effort is 2"]),
        (
            PAGE.with_name("testing.md"),
            ["statuses: [429, 200] asked: 2", "lost: 1 exact: True", "waited: 3600 seconds"],
        ),
    ],
)
def test_every_example_runs(page: Path, said: list[str]) -> None:
    """One after another, as a reader would paste them into one program."""
    printed = run("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)))
    for line in said:
        assert line in printed


def test_who_gives_up_on_an_answer_leaves_the_agent_well() -> None:
    request = cutline.Request.about(CARD, "Describe the card.", mode=cutline.Mode.EDGE)
    with cutline.BlockingAgent(cutline.Agent(Bundle.open(DRAFTER), threads=1)) as agent:
        events = agent.stream(request)
        next(events)
        events.close()  # type: ignore[attr-defined]
        whole = agent.answer(request)
        assert list(agent.stream(request))[-1].text == whole.text  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="context manager"):
        agent.answer(request)


def test_an_interrupted_stream_gives_up_and_the_agent_goes_on() -> None:
    """As Ctrl-C does it: the exception comes to who waits, while the agent's thread is in the middle of an answer."""
    request = cutline.Request.about(CARD, "Describe the card.", mode=cutline.Mode.EDGE)
    with cutline.BlockingAgent(cutline.Agent(Bundle.open(DRAFTER), threads=1)) as agent:
        events, portal = agent.stream(request), agent._there()
        next(events)
        real = portal.call

        def interrupted(*_: object) -> object:
            portal.call = real  # type: ignore[method-assign]
            raise KeyboardInterrupt

        portal.call = interrupted  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            next(events)
        assert agent.answer(request).text


def test_a_worker_that_others_could_reach_wants_keys() -> None:
    with pytest.raises(cutline.InputError, match="can be reached by others"):
        cutline.Worker(Bundle.open(TARGET), listen="0.0.0.0:0")
