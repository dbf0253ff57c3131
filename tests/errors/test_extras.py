"""What is said where an extra is missing is a command that works from where Cutline was installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from cutline.errors import InputError
from cutline.errors.extras import missing


class Installed:
    """A distribution of which pip noted this."""

    def __init__(self, noted: str | None) -> None:
        self._noted = noted

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._noted


@pytest.mark.parametrize("name", ["a checkout", "cutline-0.1.0-py3-none-any.whl"])
def test_the_command_names_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).touch()
    noted = json.dumps({"url": (tmp_path / name).as_uri(), "dir_info": {}})
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(noted))
    error = missing("a worker needs torch", "cloud")
    assert isinstance(error, InputError)
    said, _, command = str(error).partition(": ")
    assert said == "a worker needs torch; install Cutline's extra 'cloud'"
    assert shlex.split(command) == ["pip", "install", f"{tmp_path / name}[cloud]"]


@pytest.mark.parametrize("noted", [None, "{}", '{"url": "https://example.org/cutline.git"}', '{"url": "file:///gone"}'])
def test_where_that_is_not_known_it_is_that_of_a_checkout(noted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(noted))
    assert "pip install '.[keys]' in Cutline's own folder" in str(missing("keys need cryptography", "keys"))


def test_nor_where_it_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    assert "pip install '.[keys]'" in str(missing("keys need cryptography", "keys"))
