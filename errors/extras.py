"""What an install of Cutline lacks, and the command that adds it."""

from __future__ import annotations

from pathlib import Path

from cutline.errors import InputError


def missing(what: str, extra: str) -> InputError:
    """The error where something is not installed that Cutline's `extra` brings; `what` says who needs it."""
    if (origin := _origin()) is not None:
        return InputError(f"{what}; install Cutline's extra {extra!r}: pip install '{origin}[{extra}]'")
    return InputError(f"{what}; install Cutline's extra {extra!r}: pip install '.[{extra}]' in Cutline's own folder")


def _origin() -> Path | None:
    """The folder or wheel that Cutline was installed from, where pip has noted it (PEP 610) and it is still there."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        noted = json.loads(distribution("cutline").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # run from its folder
        return None
    url = urlsplit(noted.get("url", ""))
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None
