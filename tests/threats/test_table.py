"""The table in docs/explanation/security.md is what the tests say, or the check fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THREATS = """
[[threat]]
key = "{key}"
attack = "An attack."
where = "Somewhere | else."
holds = "A wall."
"""
PAGE = "# Security\n\n<!-- threats: written by `make docs` -->\n<!-- end of threats -->\n\nMore.\n"
TEST = "import pytest\n\n\n@pytest.mark.threat({given})\n@pytest.mark.parametrize('a', [1])\ndef test_it(a): ...\n"


def run(root: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "scripts" / "threats.py"), "--root", str(root), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stderr


def project(root: Path, *, key: str = "a", test: str = TEST.format(given="'a'"), page: str = PAGE) -> Path:
    (root / "docs" / "explanation").mkdir(parents=True)
    (root / "tests" / "deep").mkdir(parents=True)
    (root / "docs/explanation/threats.toml").write_text(THREATS.format(key=key))
    (root / "docs/explanation/security.md").write_text(page)
    (root / "tests" / "deep" / "test_file.py").write_text(test)
    return root


def test_the_table_is_fresh() -> None:
    assert run(ROOT, "--check") == (0, "")


def test_a_table_is_written_and_its_age_is_seen(tmp_path: Path) -> None:
    root = project(tmp_path)
    assert run(root, "--check") == (1, "docs/explanation/security.md is stale; run `make docs`\n")
    assert run(root) == (0, "")
    assert run(root, "--check") == (0, "")
    written = (root / "docs/explanation/security.md").read_text()
    row = r"| **An attack.** Somewhere \| else. | A wall. | `tests/deep/test_file.py::test_it` |"
    assert row in written.splitlines()
    assert written.startswith("# Security\n")
    assert written.endswith("\nMore.\n")
    (root / "tests" / "deep" / "test_file.py").write_text(TEST.format(given="'a'").replace("test_it", "test_that"))
    assert run(root, "--check")[0] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"key": "b", "test": TEST.format(given="'a', 'b'")}, "test_it tries 'a', which is not in"),
        ({"test": "def test_it(): ...\n"}, "no test tries 'a'"),
        ({"test": TEST.format(given="")}, "without its key"),
        ({"test": TEST.format(given="key='a'")}, "without its key"),
        ({"test": TEST.format(given="KEY")}, "otherwise than by a string"),
        ({"test": "import pytest\npytestmark = pytest.mark.threat('a')\ndef test_it(): ...\n"}, "something else"),
        ({"test": TEST.format(given="'a'").replace("test_it", "helper")}, "something else"),
        ({"page": "# Security\n"}, "no place for the table"),
    ],
)
def test_what_does_not_belong_together_is_named(tmp_path: Path, changes: dict[str, str], told: str) -> None:
    root = project(tmp_path, **changes)
    for options in ([], ["--check"]):
        code, said = run(root, *options)
        assert (code, said.count("\n")) == (1, 1)
        assert told in said
