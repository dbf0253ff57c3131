"""The table of statuses, read in both directions."""

from __future__ import annotations

import grpc
import pytest

from cutline import errors
from cutline.protos.status import exception_of, status_of


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelMismatch, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.WorkerBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.WorkerUnavailable, grpc.StatusCode.UNAVAILABLE),
        (errors.WorkerFailed, grpc.StatusCode.INTERNAL),
        (errors.VersionMismatch, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_an_exception_comes_back_with_its_words(kind: type[errors.CutlineError], code: grpc.StatusCode) -> None:
    assert status_of(kind("what was wrong")) == code
    back = exception_of(code, "what was wrong")
    assert type(back) is kind
    assert str(back) == "what was wrong"


def test_kinds_of_input_error_are_input_errors_on_the_wire() -> None:
    for kind in errors.InputError.__subclasses__():
        assert status_of(kind("x")) == grpc.StatusCode.INVALID_ARGUMENT


def test_every_status_is_an_exception_and_every_exception_a_status() -> None:
    assert type(exception_of(grpc.StatusCode.DEADLINE_EXCEEDED, "")) is errors.WorkerUnavailable
    for code in grpc.StatusCode:
        assert isinstance(exception_of(code, ""), errors.CutlineError)
    assert type(exception_of(grpc.StatusCode.UNKNOWN, "")) is errors.WorkerFailed
    assert status_of(errors.BundleError("x")) == grpc.StatusCode.INTERNAL
