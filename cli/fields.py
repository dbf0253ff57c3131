"""Options made from the fields of structs, so that what several commands may be given is written once."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import typer

R = TypeVar("R")
S = TypeVar("S", bound=msgspec.Struct)


class Without(frozenset[str]):
    """Annotates a struct: the names of its fields that are no options, and keep their defaults."""


EVERY = Without()


def with_options(command: Callable[..., R]) -> Callable[..., R]:
    """A decorator of commands: in place of a parameter that is a struct come options, one for each field.

    A struct in a struct is taken apart likewise. A field's type says the option's; one for a tuple of any length may be
    given many times. A text that annotates it is the help, as is a description of msgspec's; what is typer's own goes
    as it is.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        parameters += _parameters(one.name, hints[one.name], one.default)

    @functools.wraps(command)
    def wrapped(**given: Any) -> R:
        return command(**_values(hints, given))

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": hints.get("return")}
    return wrapped


def made(struct: type[S], given: Mapping[str, Any], but: Without = EVERY) -> S:
    """A `struct` of what its options were `given`, by their names; others have their defaults."""
    return struct(**_values({name: hint for name, hint, _ in _fields(struct, but)}, given))


def _values(hints: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    structs = {name: struct for name, hint in hints.items() if (struct := _struct(hint)) is not None}
    lists = {name for name, hint in hints.items() if get_origin(_bare(hint)) is tuple}
    return {name: tuple(given[name]) if name in lists else given[name] for name in hints if name in given} | {
        name: made(struct, given, but) for name, (struct, but) in structs.items()
    }


def _parameters(name: str, hint: Any, default: Any) -> Iterator[inspect.Parameter]:
    if (struct := _struct(hint)) is None:
        annotation = _option(name, hint, default)
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    else:
        for field in _fields(*struct):
            yield from _parameters(*field)


def _struct(hint: Any) -> tuple[type[msgspec.Struct], Without] | None:
    """The struct that a parameter is, and what of it are no options."""
    plain = _bare(hint)
    if not (isinstance(plain, type) and issubclass(plain, msgspec.Struct)):
        return None
    return plain, next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Without)), EVERY)


def _fields(struct: type[msgspec.Struct], but: Without) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of what are options."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        if field.name not in but:
            default = inspect.Parameter.empty if field.default is msgspec.NODEFAULT else field.default
            yield field.name, hints[field.name], default


def _option(name: str, hint: Any, default: Any) -> Any:
    """A type that typer takes."""
    if not (texts := list(_texts(hint))):
        return hint
    names = [f"--{name.replace('_', '-')}"] if default is False else []  # without a --no-
    return Annotated[_plain(hint), typer.Option(*names, help=" ".join(texts), show_default=default is not None)]


def _bare(hint: Any) -> Any:
    """A type without what annotates it as a whole."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _plain(hint: Any) -> Any:
    """A type without what annotates it, and a list for a tuple, as typer knows it."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return types.GenericAlias(list, (_plain(get_args(hint)[0]),))
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(_plain(one) for one in get_args(hint))]  # noqa: UP007 (made at run time)
    return hint


def _texts(hint: Any) -> Iterator[str]:
    if get_origin(hint) is not Annotated:
        for one in get_args(hint):
            yield from _texts(one)
    for one in getattr(hint, "__metadata__", ()):
        if isinstance(one, str):
            yield one
        elif isinstance(one, msgspec.Meta) and one.description:
            yield one.description
