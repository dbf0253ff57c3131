"""A measure of agreement that is the user's own: a function in a file of theirs, which only they name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from cutline.core.agreement.measures import Measure, Wording, is_own, measure_named
from cutline.errors import InputError

BAR = 0.5  # from which on answers agree: of True, and of a share that is one half or more


def open_measure(name: str) -> Measure:
    """The measure of this name, or the function of a `FILE.py:function`, which this runs. Raises InputError."""
    return _own(name) if is_own(name) else measure_named(name)


def _own(name: str) -> Measure:
    path, _, function = name.partition(".py:")
    file = Path(f"{path}.py")
    own = f"{file.name}:{function}"  # where the file lies is nobody else's business
    return Measure(own, _scored(own, _loaded(file, function)), BAR)


def _loaded(file: Path, function: str) -> Callable[[str, str], object]:
    spec = importlib.util.spec_from_file_location(f"cutline own {file.stem}", file)
    assert spec is not None  # of every name that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as classes of data look themselves up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file may do
        raise InputError(f"cannot load {file}: {_said(error)}") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{file} has no function {function[:40]!r}, which takes two texts and says whether they agree")
    checked: Callable[[str, str], object] = found
    return checked


def _scored(name: str, function: Callable[[str, str], object]) -> Callable[[Wording, Wording], float]:
    def score(ours: Wording, theirs: Wording) -> float:
        try:
            found = function(ours.text, theirs.text)
        except Exception as error:  # likewise
            raise InputError(f"{name} failed on {ours.text[:40]!r} and {theirs.text[:40]!r}: {_said(error)}") from None
        if not isinstance(found, bool | int | float) or not 0.0 <= found <= 1.0:
            raise InputError(f"{name} gave {str(found)[:40]!r}; give True or False, or a number from 0 to 1")
        return float(found)

    return score


def _said(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
