"""The error of a missing extra, with the command that installs it."""

from __future__ import annotations

from pathlib import Path

from cutline.errors import InputError


def missing(what: str, extra: str) -> InputError:
    """The error to raise if Cutline's `extra` is not installed; `what` says which feature needs it."""
    if (origin := _origin()) is not None:
        return InputError(f"{what}; install Cutline's extra {extra!r}: pip install '{origin}[{extra}]'")
    return InputError(f"{what}; install Cutline's extra {extra!r}: pip install '.[{extra}]' in Cutline's own folder")


def _origin() -> Path | None:
    """The folder or wheel that Cutline was installed from, if pip recorded it (PEP 610) and it still exists."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        record = json.loads(distribution("cutline").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # it runs from a checkout
        return None
    url = urlsplit(record.get("url", ""))
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None
