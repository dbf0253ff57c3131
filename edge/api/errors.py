"""Errors as responses, as each API's clients read them; ours has the exception back by the name in `type`."""

from __future__ import annotations

import logging
import math
import re

import msgspec

from cutline.errors import (
    AccessDenied,
    BundleError,
    CutlineError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    VersionMismatch,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)

log = logging.getLogger(__name__)

# The one table between exceptions and HTTP statuses, read in both directions.
STATUS: dict[type[CutlineError], int] = {
    ImageError: 400,
    PromptError: 400,
    InputError: 400,
    BundleError: 500,
    WorkerUnavailable: 503,
    ModelMismatch: 424,
    WorkerBusy: 429,
    WorkerFailed: 502,
    WorkerForgot: 503,
    AccessDenied: 502,
    VersionMismatch: 501,
}
BUG = "the agent failed on this request; its log says more"

_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_FOLDERS = re.compile(r"\S*[/\\](?:[^;()`,]*[/\\])?")  # of a path, in whose names there may be spaces


class Fault(msgspec.Struct, frozen=True):
    """What was wrong and what to do about it; `type` is the exception's name, `param` the field that was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """A response that is an error, and the last thing in a stream that fails."""

    error: Fault


class OllamaFailed(msgspec.Struct, frozen=True):
    """Likewise for Ollama's clients, who read a text."""

    error: str
    cutline: Fault


class Refused(Exception):
    """A request that is answered with an error of another status than its exception has."""

    def __init__(self, status: int, fault: Fault, headers: dict[str, str] | None = None) -> None:
        super().__init__(fault.message)
        self.status = status
        self.fault = fault
        self.headers = headers or {}


def fault_of(error: Exception) -> Fault:
    """The error as it is told to strangers: a bug tells them nothing, a bundle not where it lies, which is logged."""
    if isinstance(error, Refused):
        return error.fault
    if isinstance(error, BundleError):
        log.error("%s", error)
        return Fault(_FOLDERS.sub("", str(error)), BundleError.__name__)
    if isinstance(error, CutlineError):
        return Fault(str(error), _kind(error).__name__)
    return Fault(BUG, CutlineError.__name__)


def body_of(error: Exception, path: str) -> Failed | OllamaFailed:
    """The error as clients of the API at `path` read it."""
    fault = fault_of(error)
    return OllamaFailed(fault.message, fault) if path.startswith("/api/") else Failed(fault)


def kind_of(error: Exception) -> str:
    """The name by which a client knows an error."""
    return error.fault.type if isinstance(error, Refused) else _kind(error).__name__


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refused):
        return error.status
    return STATUS.get(_kind(error), 500)


def _kind(error: Exception) -> type[CutlineError]:
    """What a client knows an exception by: the nearest class in the table."""
    return next((kind for kind in type(error).__mro__ if kind in STATUS), CutlineError)


def headers_of(error: Exception) -> dict[str, str]:
    """The headers of an error's response: when to try again, where that is known."""
    if isinstance(error, Refused):
        return error.headers
    if isinstance(error, WorkerBusy) or (isinstance(error, WorkerUnavailable) and error.retry_seconds):
        return {"retry-after": str(max(1, math.ceil(error.retry_seconds)))}
    return {}


def exception_of(fault: Fault, retry_after: str | None) -> CutlineError:
    """What the agent raised; CutlineError itself for what this version has no class for."""
    kind = next((kind for kind in STATUS if kind.__name__ == fault.type), CutlineError)
    if kind is WorkerBusy or kind is WorkerUnavailable:
        known = retry_after is not None and retry_after.isascii() and retry_after.isdecimal()
        return kind(fault.message, retry_seconds=float(retry_after or 0) if known else 0.0)
    return kind(fault.message)


def unreadable(error: Exception) -> Refused:
    """The refusal of a body that is not of its shape, and the field that is wrong."""
    place = _PLACE.search(str(error))
    fault = Fault(f"the request does not read: {error}", InputError.__name__, param=place[1] if place else None)
    return Refused(400, fault)
