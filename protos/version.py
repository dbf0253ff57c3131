"""The version of this package, as workers and agents tell each other and their operators."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """What is installed; `unknown` where it is run from a folder, never installed."""
    try:
        return version("cutline")
    except PackageNotFoundError:
        return "unknown"
