"""The one table between exceptions and gRPC statuses, read in both directions.

| exception          | status              | what the agent does                      |
|--------------------|---------------------|------------------------------------------|
| InputError         | INVALID_ARGUMENT    | reports it; asking again changes nothing |
| ModelMismatch      | FAILED_PRECONDITION | reports it; another worker may serve     |
| WorkerBusy         | RESOURCE_EXHAUSTED  | may try later, or another worker         |
| WorkerUnavailable  | UNAVAILABLE         | may try another worker                   |
| WorkerUnavailable  | DEADLINE_EXCEEDED   | reports it; time is up                   |
| WorkerFailed       | INTERNAL            | may replay on another worker             |
| WorkerForgot       | ABORTED             | replays, with everything, anywhere       |
| AccessDenied       | UNAUTHENTICATED     | reports it; another worker may take it   |
| AccessDenied       | PERMISSION_DENIED   | likewise                                 |
| VersionMismatch    | UNIMPLEMENTED       | reports it; another worker may serve     |
"""

from __future__ import annotations

import grpc

from cutline.errors import (
    AccessDenied,
    CutlineError,
    InputError,
    ModelMismatch,
    VersionMismatch,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)

_TABLE: tuple[tuple[type[CutlineError], grpc.StatusCode], ...] = (
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (ModelMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (WorkerBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (WorkerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (WorkerUnavailable, grpc.StatusCode.DEADLINE_EXCEEDED),
    (WorkerFailed, grpc.StatusCode.INTERNAL),
    (WorkerForgot, grpc.StatusCode.ABORTED),
    (AccessDenied, grpc.StatusCode.UNAUTHENTICATED),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (VersionMismatch, grpc.StatusCode.UNIMPLEMENTED),
)


def status_of(error: CutlineError) -> grpc.StatusCode:
    """The status that `error` is sent as."""
    return next((code for kind, code in _TABLE if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def exception_of(code: grpc.StatusCode, details: str) -> CutlineError:
    """The exception for a peer's status; a code outside the table is a WorkerFailed."""
    kind = next((kind for kind, known in _TABLE if known == code), WorkerFailed)
    return kind(details)
