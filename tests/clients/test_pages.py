"""What the pages show of the clients of OpenAI and Ollama runs as it stands, but for the address."""

from __future__ import annotations

import gc
import re
import runpy
from pathlib import Path

import pytest

from tests.clients.conftest import Served

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8080"
PAGES = ("README.md", "docs/how-to/ollama.md", "docs/how-to/structured-output.md")
EXAMPLES = [
    (page, index, code)
    for page in PAGES
    for index, code in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S))
    if ADDRESS in code
]
NAMES = [f"{page}-{index}" for page, index, _ in EXAMPLES]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # an example need not close what it opened
@pytest.mark.parametrize(("page", "code"), [(page, code) for page, _, code in EXAMPLES], ids=NAMES)
def test_an_example_runs(
    agent: Served,
    page: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    example = tmp_path / "example.py"
    example.write_text(code.replace(ADDRESS, agent.url))
    before = len(agent.asked)
    runpy.run_path(str(example))
    gc.collect()
    assert len(agent.asked) > before
    printed, said = capsys.readouterr().out, agent.target_says()
    assert said in printed or (said[:1] == "{" and "colour=" in printed), "as it is, or as what was filled in with it"


def test_there_are_examples_of_both() -> None:
    assert {page for page, _, _ in EXAMPLES} == {
        "README.md",
        "docs/how-to/ollama.md",
        "docs/how-to/structured-output.md",
    }
    assert len([page for page, _, _ in EXAMPLES if page == "README.md"]) == 2
