"""Cutline from Python: an `Agent` answers a `Request`, a `Worker` serves the big model. docs/how-to/python.md has both.

Each name is loaded when it is first used, so that `import cutline` costs nothing; torch comes with those of a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutline.cloud.serving.server import Access
    from cutline.cloud.worker import Worker
    from cutline.core.constraint import Constraint
    from cutline.core.conversation import ImagePart, Message, TextPart, VideoPart
    from cutline.core.request import Mode, Request
    from cutline.core.sampling import Sampling
    from cutline.core.wire import Wire
    from cutline.edge.agent import Agent, AgentSettings
    from cutline.edge.blocking import BlockingAgent
    from cutline.edge.generation.events import Corrected, Event, Guessed, Planned, Settled
    from cutline.edge.generation.result import Answer, Lost, Provenance, Token
    from cutline.edge.inference.encoder import Encoder
    from cutline.errors import (
        AccessDenied,
        BundleError,
        CutlineError,
        ImageError,
        InputError,
        ModelMismatch,
        ProfileError,
        PromptError,
        StorageError,
        VersionMismatch,
        WorkerBusy,
        WorkerError,
        WorkerFailed,
        WorkerForgot,
        WorkerUnavailable,
    )
    from cutline.models.bundle import Bundle
    from cutline.protos.channel.credentials import AgentKeys, ServerKeys

_HOMES = {
    "cloud.serving.server": ("Access",),
    "cloud.worker": ("Worker",),
    "core.conversation": ("ImagePart", "Message", "TextPart", "VideoPart"),
    "core.request": ("Mode", "Request"),
    "core.constraint": ("Constraint",),
    "core.sampling": ("Sampling",),
    "core.wire": ("Wire",),
    "edge.agent": ("Agent", "AgentSettings"),
    "edge.blocking": ("BlockingAgent",),
    "edge.generation.events": ("Corrected", "Event", "Guessed", "Planned", "Settled"),
    "edge.generation.result": ("Answer", "Lost", "Provenance", "Token"),
    "edge.inference.encoder": ("Encoder",),
    "errors": (
        "AccessDenied",
        "BundleError",
        "CutlineError",
        "ImageError",
        "InputError",
        "ModelMismatch",
        "ProfileError",
        "PromptError",
        "StorageError",
        "VersionMismatch",
        "WorkerBusy",
        "WorkerError",
        "WorkerFailed",
        "WorkerForgot",
        "WorkerUnavailable",
    ),
    "models.bundle": ("Bundle",),
    "protos.channel.credentials": ("AgentKeys", "ServerKeys"),
}
_FOUND = {name: f"cutline.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "Access",
    "AccessDenied",
    "Agent",
    "AgentKeys",
    "AgentSettings",
    "Answer",
    "BlockingAgent",
    "Bundle",
    "BundleError",
    "Constraint",
    "Corrected",
    "CutlineError",
    "Encoder",
    "Event",
    "Guessed",
    "ImageError",
    "ImagePart",
    "InputError",
    "Lost",
    "Message",
    "Mode",
    "ModelMismatch",
    "Planned",
    "ProfileError",
    "PromptError",
    "Provenance",
    "Request",
    "Sampling",
    "ServerKeys",
    "Settled",
    "StorageError",
    "TextPart",
    "Token",
    "VersionMismatch",
    "VideoPart",
    "Wire",
    "Worker",
    "WorkerBusy",
    "WorkerError",
    "WorkerFailed",
    "WorkerForgot",
    "WorkerUnavailable",
    "__version__",
]

__version__: str


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("cutline")
    elif name in _FOUND:
        value = getattr(import_module(_FOUND[name]), name)
    else:
        raise AttributeError(f"cutline has no name {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
