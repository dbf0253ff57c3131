"""What becomes of a setting of a model's configuration files: the words that its tables are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["honoured", "changes nothing", "limited"]


@dataclass(frozen=True, slots=True)
class SettingFate:
    """How a setting is treated: its `fate`, and `how` in words. Only the values in `taken` of a limited one run.

    A `size` is a number, which must be 1 or more and is bounded.
    """

    fate: Fate
    how: str
    taken: tuple[Any, ...] = ()
    size: bool = False


def honoured(how: str, *names: str) -> dict[str, SettingFate]:
    """Settings that do here what they do in transformers."""
    return dict.fromkeys(names, SettingFate("honoured", how))


def size(how: str, *names: str) -> dict[str, SettingFate]:
    """Honoured settings that are sizes."""
    return dict.fromkeys(names, SettingFate("honoured", how, size=True))


def idle(why: str, *names: str) -> dict[str, SettingFate]:
    """Settings that change nothing."""
    return dict.fromkeys(names, SettingFate("changes nothing", why))


def limited(taken: tuple[Any, ...], *names: str) -> dict[str, SettingFate]:
    """Settings of which only some values run."""
    return dict.fromkeys(names, SettingFate("limited", "other values are refused", taken))
