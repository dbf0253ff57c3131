"""SIGHUP of a command that runs for long: its settings are read again, and those that may change while it runs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer

from cutline.cli.config import read_config, told, values
from cutline.errors import InputError


class Reload:
    """Reads a command's settings again where it is called, and says in a line what came of it.

    `changes` are the keys of those that may change while it runs. `apply` is given their new values, where any differs
    from what was, and raises InputError before anything has changed if one is wrong; then all stays as it was, as it
    does where the file is broken. What else differs is named, for it needs a restart.
    """

    def __init__(
        self,
        context: typer.Context,
        changes: frozenset[str],
        apply: Callable[[Mapping[str, Any]], object],
        *,
        tell: Callable[[str], object],
    ) -> None:
        self._context = context
        self._changes = changes
        self._apply = apply
        self._tell = tell
        self._known = values(context)

    def __call__(self) -> None:
        """Read them again."""
        try:
            read_config(self._context, self._context.params["config"])
            found = values(self._context)
            differing = {key for key, value in found.items() if value != self._known[key]}
            changed = {key: found[key] for key in self._changes}
            if differing & self._changes:
                self._apply(changed)
        except InputError as error:
            self._tell(f"settings stay as they are: {error}")
            return
        self._known |= changed
        now = [f"{key} is {told(found[key])}" for key in sorted(differing & self._changes)]
        needing = ", ".join(sorted(differing - self._changes))
        later = [f"{needing} changed and needs a restart"] if needing else []
        self._tell(f"settings were read again: {'; '.join([*now, *later]) or 'nothing changed'}")
