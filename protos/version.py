"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The installed version; `unknown` if the package runs from a folder without being installed."""
    try:
        return version("cutline")
    except PackageNotFoundError:
        return "unknown"
