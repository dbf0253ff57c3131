"""Options made from the fields of a struct, so that what a request may say is written once."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import typer

R = TypeVar("R")


def with_fields(struct: type[msgspec.Struct], parameter: str, *, but: frozenset[str]) -> Callable[[Any], Any]:
    """A decorator of commands: their `parameter`, a `struct`, becomes an option for each field that is not in `but`.

    A field's type says the option's, and its description the help.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        signature, hints = inspect.signature(command, eval_str=True), get_type_hints(command, include_extras=True)
        made = _options(struct, but)

        @functools.wraps(command)
        def wrapped(*args: Any, **given: Any) -> R:
            given[parameter] = struct(**{one.name: given.pop(one.name) for one in made})
            return command(*args, **given)

        parameters: list[inspect.Parameter] = []
        for one in signature.parameters.values():
            parameters += made if one.name == parameter else [one.replace(annotation=hints[one.name])]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return wrapped

    return decorate


def _options(struct: type[msgspec.Struct], but: frozenset[str]) -> list[inspect.Parameter]:
    hints = get_type_hints(struct, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=Annotated[_plain(hints[field.name]), _option(hints[field.name], field.default)],
        )
        for field in msgspec.structs.fields(struct)
        if field.name not in but
    ]


def _option(hint: Any, default: Any) -> Any:
    described = [one.description for one in _metas(hint) if one.description]
    return typer.Option(help=" ".join(described), show_default=default is not None)


def _plain(hint: Any) -> Any:
    """A type without what annotates it."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(_plain(one) for one in get_args(hint))]  # noqa: UP007 (made at run time)
    return hint


def _metas(hint: Any) -> list[msgspec.Meta]:
    inner = [meta for one in get_args(hint) for meta in _metas(one)] if get_origin(hint) is not Annotated else []
    return inner + [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, msgspec.Meta)]
