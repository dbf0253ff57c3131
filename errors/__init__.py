"""Everything that Cutline raises on purpose. Each class has the exit code of the command line.

    CutlineError                exit 1
    ├── InputError              exit 2   what the person gave cannot be used
    │   ├── ImageError                   not an image, too big, too small, or of an unsupported kind
    │   ├── PromptError                  empty question, or longer than the model's context
    │   └── ProfileError                 a device or link profile cannot be read
    ├── BundleError             exit 3   a bundle is missing, corrupt, or not what its manifest says
    ├── StorageError        exit 12  a file could not be written: the disk is full or fails; old content is kept
    ├── NotBetter           exit 13  a drafter that learnt is not better than the old one, and was not made
    └── WorkerError
        ├── WorkerUnavailable   exit 4   nobody answers at the address, or the link broke
        ├── ModelMismatch       exit 5   the worker serves another model than the agent was made for
        ├── WorkerBusy          exit 6   the worker refused early: no room; try again later
        ├── WorkerFailed        exit 7   the worker broke while it served this session
        ├── WorkerForgot        exit 10  the worker evicted what a session builds on: open the session again, in full
        ├── AccessDenied        exit 9   the worker refuses this agent: no token or certificate, or a wrong one
        └── VersionMismatch     exit 11  agent and worker are of different versions, and one lacks a feature

Ctrl-C ends with 130 and output that nobody reads with 141, as shells expect.
A message is one line: what was wrong, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class CutlineError(Exception):
    """Root of the tree; raised itself only for an error of another process that this version has no class for."""

    exit_code: ClassVar[int] = 1


class InputError(CutlineError):
    """What the person gave cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """The image cannot be read or is of an unsupported kind."""


class PromptError(InputError):
    """The question is empty or does not fit the model's context."""


class ProfileError(InputError):
    """A device or link profile cannot be read; the message names the file and the key."""


class BundleError(CutlineError):
    """A bundle is missing, corrupt, or not what its manifest says."""

    exit_code = 3


class StorageError(CutlineError):
    """A file could not be written: the disk is full or fails. The old content is kept."""

    exit_code = 12


class NotBetter(CutlineError):
    """A drafter learnt, and is not better than it was; it was not made."""

    exit_code = 13


class WorkerError(CutlineError):
    """A worker could not answer; raised as one of the classes below."""


class WorkerUnavailable(WorkerError):
    """Nobody answers at the address, be it a worker's or a hub's, or the link broke.

    `retry_seconds` is when to try again, 0.0 if not known.
    """

    exit_code = 4

    def __init__(self, message: str, *, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class ModelMismatch(WorkerError):
    """The worker serves another model than the agent was made for."""

    exit_code = 5


class WorkerBusy(WorkerError):
    """The worker refused early because it has no room; `retry_seconds` is when to try again, 0.0 if not known."""

    exit_code = 6

    def __init__(self, message: str, *, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class WorkerFailed(WorkerError):
    """The worker broke while it served this session."""

    exit_code = 7


class WorkerForgot(WorkerError):
    """The worker evicted what the session builds on; it accepts the session if everything is sent again."""

    exit_code = 10


class AccessDenied(WorkerError):
    """The worker refuses this agent: it has no token or certificate, or a wrong one. So may a hub of models."""

    exit_code = 9


class VersionMismatch(WorkerError):
    """Agent and worker are of different versions, and one of them lacks a feature that the other needs."""

    exit_code = 11
