"""Settings of a command that runs for long: its file's, above them the environment's, above those its options.

The file is the first one found: that of --config, of CUTLINE_CONFIG, NAME.toml in the user's folder or in /etc/cutline.
Its keys are the command's long options without the dashes, as are the names of variables behind CUTLINE_NAME_.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from cutline.errors import InputError

VARIABLE = "CUTLINE_CONFIG"
SYSTEM = Path("/etc/cutline")


class Origin(NamedTuple):
    """A setting's value, and where it comes from."""

    key: str
    value: Any
    source: str


def read_config(context: typer.Context, given: Path | None) -> Path | None:
    """Has a command take what is not among its options from its file and the environment.

    `given` is --config; gives the file that was found. Raises InputError, which names a setting that is not there.
    """
    name, keys = _name(context), _keys(context)
    file = _found(name, given)
    table = {} if file is None else _read(file, keys)
    context.default_map = {keys[key].name: value for key, value in table.items()}
    for key, value in table.items():
        _check(context, keys[key], value, f"{key} in {file}")
    context.auto_envvar_prefix = prefix = f"CUTLINE_{name.upper()}"
    variables = {_variable(prefix, one): key for key, one in keys.items()}
    for variable in sorted(os.environ):
        if variable.startswith(f"{prefix}_") and variable not in variables:
            raise InputError(f"{variable} is no setting of `{context.command_path}`{_like(variable, variables)}")
    return file


def settings(context: typer.Context, arguments: list[str], given: Path | None) -> tuple[Path | None, list[Origin]]:
    """The settings that a command would run with, given those `arguments`, and the file. Raises InputError."""
    command: Any = context.command
    options, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if rest:
        raise InputError(f"{' '.join(rest)} are no options of `{context.command_path}`")
    file = read_config(context, given)
    prefix = f"CUTLINE_{_name(context).upper()}"
    found = []
    for key, one in _keys(context).items():
        value, source = one.consume_value(context, options)
        said = {"COMMANDLINE": "option", "ENVIRONMENT": _variable(prefix, one), "DEFAULT_MAP": str(file)}
        value = None if one.value_is_missing(value) else one.process_value(context, value)
        found.append(Origin(key, value, said.get(source.name, "default")))
    return file, found


def values(context: typer.Context) -> dict[str, Any]:
    """What a command runs with, by the keys of its settings: its options, above what `read_config` read last.

    Raises InputError.
    """
    found = {}
    for key, one in _keys(context).items():
        if getattr(context.get_parameter_source(one.name), "name", "") == "COMMANDLINE":
            found[key] = context.params[one.name]
            continue
        value, _ = one.consume_value(context, {})
        try:
            found[key] = None if one.value_is_missing(value) else one.process_value(context, value)
        except typer.BadParameter as error:
            raise InputError(f"{key}: {error.message}") from None
    return found


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of settings; without it CUTLINE_CONFIG, ~/.config/cutline/NAME.toml or /etc/cutline/NAME.toml.",
        show_default=False,
        is_eager=True,
        callback=read_config,
    ),
]


def told(value: Any) -> Any:
    """A value without the passwords that addresses have in them."""
    from cutline.edge.watch.sources import shown

    if isinstance(value, list | tuple):
        return [told(one) for one in value]
    return shown(value) if isinstance(value, str) and "://" in value else value


def _name(context: typer.Context) -> str:
    """`edge` of `cutline edge`, `cluster` of `cutline cluster up`."""
    return context.command_path.split()[1]


def _keys(context: typer.Context) -> dict[str, Any]:
    """A command's parameters by the keys that they have in a file."""
    return dict(_named(context.command))


def _named(command: Any) -> Iterator[tuple[str, Any]]:
    for one in command.params:
        long = [name.removeprefix("--") for name in one.opts if name.startswith("--")]
        if one.name not in ("config", "help"):
            yield (long or [one.name.replace("_", "-")])[0], one


def _variable(prefix: str, one: Any) -> str:
    return f"{prefix}_{one.name.upper()}"


def _found(name: str, given: Path | None) -> Path | None:
    if given is not None:
        return given
    if variable := os.environ.get(VARIABLE):
        return Path(variable)
    folders = [SYSTEM]
    with suppress(RuntimeError):  # nobody has a home
        folders.insert(0, Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cutline")
    return next((file for folder in folders if _is_there(file := folder / f"{name}.toml")), None)


def _is_there(file: Path) -> bool:
    """Whether it is a file that we could find: in a home that is another user's there is none for us."""
    try:
        return file.is_file()
    except PermissionError:
        return False


def _read(file: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    from cutline.devices.toml import from_toml, read_text

    try:
        table = {key.replace("_", "-"): value for key, value in from_toml(read_text(file)).items()}
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{file} is no TOML file: {error}") from None
    for key in table:
        if key not in keys:
            raise InputError(f"{file} has no setting {key!r} to give{_like(key, keys)}")
    return table


def _check(context: typer.Context, one: Any, value: Any, where: str) -> None:
    """That a value fits its option. Raises InputError."""
    if isinstance(value, dict) or (one.multiple != isinstance(value, list) and one.nargs != -1):
        wanted = "a list of texts" if one.multiple else "a single value"
        raise InputError(f"{where} is {told(value)!r}; give {wanted}")
    if getattr(one, "is_flag", False) and not isinstance(value, bool):
        raise InputError(f"{where} is {told(value)!r}; give true or false")
    try:
        one.process_value(context, value)
    except typer.BadParameter as error:
        raise InputError(f"{where}: {error.message}") from None


def _like(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
