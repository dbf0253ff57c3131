"""Settings from a file, the environment and options: what each weighs, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cutline.cli import config
from cutline.cli.config_show import COMMANDS
from cutline.cli.main import app
from cutline.devices.toml import to_toml
from cutline.errors import CutlineError, InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings that is nobody's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "system")
    (tmp_path / "user" / "cutline").mkdir(parents=True)
    (tmp_path / "system").mkdir()
    return tmp_path


def shown(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, tuple[Any, str]]:
    """The settings of a command, and where each comes from. Raises what the command would."""
    ran = CliRunner().invoke(app, ["config", "show", "--json", *arguments], env=environment)
    if ran.exception is not None:
        raise ran.exception
    return {key: (one["value"], one["source"]) for key, one in json.loads(ran.stdout).items()}


def test_options_stand_above_variables_and_those_above_the_file(home: Path) -> None:
    file = home / "my.toml"
    file.write_text('listen = "127.0.0.1:1"\nrequests = 3\nnotice = 5\nworker = ["a:1", "b:2"]\noffline = true\n')
    found = shown(
        *("edge", "--config", str(file), "--notice", "7"),
        environment={"CUTLINE_EDGE_REQUESTS": "4", "CUTLINE_EDGE_NOTICE": "6", "CUTLINE_EDGE_ALLOW_URL": "x y"},
    )
    assert found["listen"] == ("127.0.0.1:1", str(file))
    assert found["requests"] == (4, "CUTLINE_EDGE_REQUESTS")
    assert found["notice"] == (7.0, "option")
    assert found["worker"] == (["a:1", "b:2"], str(file))
    assert found["offline"] == (True, str(file))
    assert found["allow-url"] == (["x", "y"], "CUTLINE_EDGE_ALLOW_URL")
    assert found["log"] == ("text", "default")


def test_the_first_file_found_is_taken_alone(home: Path) -> None:
    (home / "system" / "cloud.toml").write_text("drain = 1\nmax-sessions = 9\n")
    assert shown("cloud")["drain"] == (1.0, str(home / "system" / "cloud.toml"))
    (home / "user" / "cutline" / "cloud.toml").write_text("drain = 2\n")
    found = shown("cloud")
    assert found["drain"][0] == 2.0
    assert found["max-sessions"] == (None, "default"), "files are not merged"
    (home / "named.toml").write_text("drain = 3\n")
    assert shown("cloud", environment={"CUTLINE_CONFIG": str(home / "named.toml")})["drain"][0] == 3.0
    (home / "given.toml").write_text("drain = 4\n")
    environment = {"CUTLINE_CONFIG": str(home / "named.toml")}
    assert shown("cloud", "--config", str(home / "given.toml"), environment=environment)["drain"][0] == 4.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lisen = 'x'", "has no setting 'lisen' to give; did you mean listen?"),
        ("[gate]\nrisk = 1", "has no setting 'gate' to give"),
        ("listen", "is no TOML file"),
        ("worker = 'a:1'", "worker in .* is 'a:1'; give a list of texts"),
        ("requests = [1]", r"requests in .* is \[1\]; give a single value"),
        ("offline = 'yes'", "offline in .* is 'yes'; give true or false"),
        ("requests = 'many'", "requests in .*: .*integer"),
        ("a = " + "[" * 100_000, "is no TOML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(home: Path, text: str, words: str) -> None:
    file = home / "edge.toml"
    file.write_text(text)
    for arguments in (["config", "show", "edge", "--config", str(file)], ["edge", "--config", str(file)]):
        ran = CliRunner().invoke(app, arguments)
        assert isinstance(ran.exception, InputError)
        with pytest.raises(InputError, match=words):
            raise ran.exception


def test_a_file_that_is_not_there_and_a_variable_that_is_none_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.toml: No such file"):
        shown("watch", "--config", str(home / "none.toml"))
    with pytest.raises(InputError, match=r"CUTLINE_EDGE_REQUEST is no setting .* did you mean CUTLINE_EDGE_REQUESTS\?"):
        shown("edge", environment={"CUTLINE_EDGE_REQUEST": "3"})
    with pytest.raises(InputError, match="there are no settings of 'ask'"):
        shown("ask")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_long_command_can_be_a_setting(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for one in COMMANDS[name]:
        command = command.commands[one]
    there = {one.name for one in command.params} - {"config"}
    assert {key.replace("-", "_") for key in shown(name)} | {"next_worker", "compiled"} >= there


def test_a_command_runs_with_what_its_file_says(home: Path) -> None:
    """Seen by what it refuses: the settings go together as options do."""
    file = home / "cloud.toml"
    file.write_text('listen = "192.0.2.1:1"\n')
    ran = CliRunner().invoke(app, ["cloud", "--config", str(file)])
    assert isinstance(ran.exception, InputError)
    assert "192.0.2.1" in str(ran.exception) or "--tls-cert" in str(ran.exception)
    file.write_text("drain = -1\ninsecure = true\n")
    ran = CliRunner().invoke(app, ["cloud", "--config", str(file)])
    assert "--drain is -1" in str(ran.exception)
    ran = CliRunner().invoke(app, ["cloud", "--config", str(file), "--drain", "-2"])
    assert "--drain is -2" in str(ran.exception)


KEYS = st.sampled_from(["listen", "requests", "notice", "worker", "offline", "threads", "bundle", "nothing"])
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_a_file_says_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("any") / "edge.toml"
    file.write_text(to_toml(table), encoding="utf-8", errors="surrogatepass")
    ran = CliRunner().invoke(app, ["config", "show", "edge", "--json", "--config", str(file)])
    if ran.exception is None:
        assert {key for key, one in json.loads(ran.stdout).items() if one["source"] == str(file)} == set(table)
    else:
        assert isinstance(ran.exception, CutlineError)
        assert "\n" not in str(ran.exception)


def test_passwords_in_addresses_stay_unsaid(home: Path) -> None:
    file = home / "watch.toml"
    file.write_text(
        'source = ["rtsp://me:secret@camera/live"]\nask = "What?"\nupstream = "https://me:secret@host/v1"\n'
    )
    for more in ([], ["--json"]):
        ran = CliRunner().invoke(app, ["config", "show", "watch", "--config", str(file), *more])
        assert ran.exit_code == 0, ran.output
        assert "secret" not in ran.output
        assert "camera" in ran.output


def test_a_home_that_is_not_ours_has_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", denied)
    assert shown("edge")["log"] == ("text", "default")
