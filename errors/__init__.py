"""Everything that Cutline raises on purpose. Each class has the exit code that the command line ends with.

    CutlineError                exit 1
    ├── InputError              exit 2   what the person gave cannot be used
    │   ├── ImageError                   not an image, too big, too small, of a kind not taken
    │   ├── PromptError                  empty question, or longer than the model's context
    │   └── ProfileError                 a device or link profile that does not read
    ├── BundleError             exit 3   a bundle is missing, corrupt, or not what its manifest says
    ├── StorageError        exit 12  a file could not be written: no room, or the disk fails; what was there is kept
    └── WorkerError
        ├── WorkerUnavailable   exit 4   nobody answers at the address, or the link broke
        ├── ModelMismatch       exit 5   the worker serves another model than the agent was made for
        ├── WorkerBusy          exit 6   the worker refused early: no room; try again later
        ├── WorkerFailed        exit 7   the worker broke while it served this session
        ├── WorkerForgot        exit 10  the worker let go of what a session stood on: open it anew, whole
        ├── AccessDenied        exit 9   the worker does not take this agent: no token or certificate, or a wrong one
        └── VersionMismatch     exit 11  the worker is of another version, and one of the two lacks what it takes

Ctrl-C ends with 130 and output that nobody reads with 141, as shells expect.
A message is one line: what was wrong, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class CutlineError(Exception):
    """Root of the tree; raised itself only for what another process reports and this version has no class for."""

    exit_code: ClassVar[int] = 1


class InputError(CutlineError):
    """What the person gave cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """The image cannot be read or is of a kind not taken."""


class PromptError(InputError):
    """The question is empty or does not fit the model's context."""


class ProfileError(InputError):
    """A device or link profile does not read; names the file and the key."""


class BundleError(CutlineError):
    """A bundle is missing, corrupt, or not what its manifest says."""

    exit_code = 3


class StorageError(CutlineError):
    """A file could not be written, for want of room or by a fault of the disk; what was there is as it was."""

    exit_code = 12


class WorkerError(CutlineError):
    """A worker could not answer; raised as one of the classes below."""


class WorkerUnavailable(WorkerError):
    """Nobody answers at the address, or the link broke; `retry_seconds` is when to try again, 0.0 if not known."""

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
    """The worker let go of what the session stood on, and takes it again if everything is sent anew."""

    exit_code = 10


class AccessDenied(WorkerError):
    """The worker does not take this agent: it has no token or certificate, or a wrong one."""

    exit_code = 9


class VersionMismatch(WorkerError):
    """The worker is of another version than this agent, and one of the two lacks what the other needs."""

    exit_code = 11
