"""The messages of `cutline.protos.messages` to and from the wire; nothing else touches the generated stubs of them.

`…_from_wire` raises InputError on a message that breaks the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import grpc
import msgspec
import numpy as np
from numpy.typing import NDArray

from cutline.core.constraint import Constraint
from cutline.core.request import MAX_ALTERNATIVES, Priority, check_request_id
from cutline.core.sampling import Sampling, check_named
from cutline.core.wire import Wire
from cutline.errors import CutlineError, InputError, VersionMismatch, WorkerBusy
from cutline.protos.features import missing, required, understood
from cutline.protos.messages import (
    DIGEST_BYTES,
    MAX_TOKENS,
    AgentMessage,
    Boundary,
    Cancel,
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Likelihood,
    Open,
    Opened,
    Reason,
    WorkerMessage,
)
from cutline.protos.status import exception_of, status_of
from cutline.protos.tensors import CHUNK, decode_tensor, encode_tensor, wire_of
from cutline.protos.v1 import worker_pb2 as pb

_REASONS = {reason.value for reason in Reason}


def agent_to_wire(message: AgentMessage) -> pb.AgentMessage:
    """An agent's message, encoded. Raises InputError on boundary rows that their format cannot hold."""
    match message:
        case Open():
            opening = pb.Open(
                model=message.model,
                tokens=message.tokens,
                prompt_length=message.prompt_length,
                cut=message.cut,
                images=message.images,
                max_tokens=message.max_tokens,
                sampling=_sampling_to_wire(message.sampling),
                effort=message.effort,
                draft=message.draft,
                grids=[pb.Grid(rows=rows, cols=cols) for rows, cols in message.grids],
                digests=message.digests,
                known=message.known,
                pieces=message.pieces,
                times=message.times,
                likelihoods=message.likelihoods,
                alternatives=message.alternatives,
                request_id=message.request_id,
                store=message.store,
                priority=getattr(pb, message.priority.name),
            )
            opening.requires.extend(required(opening))
            return pb.AgentMessage(open=opening)
        case ImageChunk(data, last):
            return pb.AgentMessage(image=pb.ImageChunk(data=data, last=last))
        case Boundary(rows, last, wire, tensor):
            return pb.AgentMessage(boundary=pb.Boundary(rows=encode_tensor(rows, wire), last=last, tensor=tensor))
        case Draft(position, tokens, rows, wire):
            encoded = None if rows is None else encode_tensor(rows, wire)
            return pb.AgentMessage(draft=pb.Draft(position=position, tokens=tokens, rows=encoded))
        case Cancel():
            return pb.AgentMessage(cancel=pb.Cancel())


def agent_from_wire(message: pb.AgentMessage) -> AgentMessage:
    """An agent's message, decoded. Raises InputError, or VersionMismatch on a message of a newer version."""
    match message.WhichOneof("kind"):
        case "open":
            return _open(message.open)
        case "image":
            if len(message.image.data) > CHUNK:
                raise InputError(f"an image piece of {len(message.image.data)} bytes is too long; send {CHUNK} at most")
            return ImageChunk(message.image.data, message.image.last)
        case "boundary":
            piece = message.boundary
            return Boundary(_rows(piece.rows), piece.last, wire_of(piece.rows), piece.tensor)
        case "draft":
            return _draft(message.draft)
        case "cancel":
            return Cancel()
        case _:
            raise _unknown(message, "the agent is newer than this worker")


def _unknown(message: Any, newer: str) -> CutlineError:
    """The error for a message of no known kind: it is of a later version, or empty."""
    what = "a message of no known kind"
    return VersionMismatch(f"{what}; {newer}") if message.ByteSize() else InputError(what)


def _open(opening: pb.Open) -> Open:
    if lacks := missing(opening.requires, understood()):
        raise VersionMismatch(f"this worker does not understand {', '.join(lacks)[:200]!r}; upgrade it, or ask another")
    if not 0.0 <= opening.effort <= 1.0:
        raise InputError(f"effort is {opening.effort}; give 0 (only verify) to 1 (full race)")
    if not 1 <= opening.prompt_length <= len(opening.tokens):
        raise InputError(f"prompt_length is {opening.prompt_length} for {len(opening.tokens)} tokens")
    if any(len(digest) != DIGEST_BYTES for digest in opening.digests):
        raise InputError(f"an image's digest is not of {DIGEST_BYTES} bytes")
    if opening.known > len(opening.digests):
        raise InputError(f"{opening.known} images are said to be known, {len(opening.digests)} have a digest")
    if opening.alternatives > MAX_ALTERNATIVES:
        raise InputError(f"{opening.alternatives} alternatives a token are too many; take {MAX_ALTERNATIVES}")
    return Open(
        model=opening.model,
        tokens=_tokens(opening.tokens),
        prompt_length=opening.prompt_length,
        max_tokens=opening.max_tokens,
        cut=opening.cut,
        images=opening.images,
        sampling=_sampling(opening.sampling),
        effort=opening.effort,
        draft=_tokens(opening.draft),
        grids=tuple((grid.rows, grid.cols) for grid in opening.grids),
        digests=tuple(opening.digests),
        known=opening.known,
        pieces=tuple(opening.pieces),
        times=tuple(opening.times),
        likelihoods=opening.likelihoods,
        alternatives=opening.alternatives,
        request_id=check_request_id(opening.request_id),
        store=opening.store,
        priority=_priority(opening.priority),
    )


def _priority(value: int) -> Priority:
    """A priority, decoded: one that is not known, of a newer agent, is taken for the usual one."""
    return Priority[pb.Priority.Name(value)] if value in pb.Priority.values() else Priority.NORMAL


def _sampling_to_wire(sampling: Sampling) -> pb.Sampling:
    """Sampling options, encoded. The fields have the same names on the wire."""
    options = {name: value for name, value in msgspec.structs.asdict(sampling).items() if value is not None}
    bias = [pb.Bias(token=token, value=value) for token, value in options.pop("logit_bias")]
    if sampling.constraint is not None:
        options["constraint"] = pb.Constraint(grammar=sampling.constraint.grammar, text=sampling.constraint.text)
    return pb.Sampling(logit_bias=bias, **options)


def _sampling(sampling: pb.Sampling) -> Sampling:
    """Sampling options, decoded. Raises InputError for a value out of its range."""
    options: dict[str, Any] = {}
    for field in sampling.DESCRIPTOR.fields:
        value = getattr(sampling, field.name)
        if field.is_repeated:
            check_named(field.name, len(value))  # before they are many objects
            options[field.name] = tuple((one.token, one.value) if isinstance(one, pb.Bias) else one for one in value)
        elif not field.has_presence or sampling.HasField(field.name):
            options[field.name] = value
    if (constraint := options.pop("constraint", None)) is not None:
        options["constraint"] = Constraint.of(constraint.grammar, constraint.text)
    return Sampling(**options)


def _draft(draft: pb.Draft) -> Draft:
    tokens = _tokens(draft.tokens)
    if not draft.HasField("rows"):
        return Draft(draft.position, tokens)
    rows = _rows(draft.rows)
    if len(rows) != len(tokens):
        raise InputError(f"a draft of {len(tokens)} tokens came with {len(rows)} boundary rows; send a row a token")
    return Draft(draft.position, tokens, rows, wire_of(draft.rows))


def _rows(tensor: pb.Tensor) -> NDArray[np.float32]:
    rows = decode_tensor(tensor)
    if rows.ndim != 2:
        raise InputError(f"a boundary has 2 dimensions, not {rows.ndim}")
    return rows


def _tokens(tokens: Any) -> tuple[int, ...]:
    if len(tokens) > MAX_TOKENS:
        raise InputError(f"{len(tokens)} tokens in one message are too many; send {MAX_TOKENS} at most")
    return tuple(tokens)


def worker_to_wire(message: WorkerMessage) -> pb.WorkerMessage:
    """A worker's message, encoded."""
    match message:
        case Opened():
            return pb.WorkerMessage(opened=pb.Opened(**_fields(message)))
        case Confirmed(position, tokens, accepted, likelihoods):
            wired = [_likelihood_to_wire(likelihood) for likelihood in likelihoods]
            confirmed = pb.Confirmed(position=position, tokens=tokens, accepted=accepted, likelihoods=wired)
            return pb.WorkerMessage(confirmed=confirmed)
        case Finished(reason, passes, verified, cloud_seconds):
            finished = pb.Finished(reason=reason.value, passes=passes, verified=verified, cloud_seconds=cloud_seconds)
            return pb.WorkerMessage(finished=finished)
        case CutlineError() as error:
            status: int = status_of(error).value[0]
            retry = error.retry_seconds if isinstance(error, WorkerBusy) else 0.0
            return pb.WorkerMessage(failure=pb.Failure(status=status, message=str(error), retry_seconds=retry))


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__}


def _likelihood_to_wire(likelihood: Likelihood) -> pb.Likelihood:
    return pb.Likelihood(
        logprob=likelihood.logprob,
        tokens=[token for token, _ in likelihood.alternatives],
        logprobs=[logprob for _, logprob in likelihood.alternatives],
    )


def worker_from_wire(message: pb.WorkerMessage) -> WorkerMessage:
    """A worker's message, decoded. Raises InputError, or VersionMismatch on a message of a newer version."""
    match message.WhichOneof("kind"):
        case "opened":
            opened = message.opened
            times = (opened.upload_seconds, opened.prepare_seconds, opened.queue_seconds)
            _check_times(*times)
            return Opened(opened.session, *times, kept=opened.kept, reused=opened.reused)
        case "confirmed":
            confirmed = message.confirmed
            if confirmed.accepted > len(confirmed.tokens):
                raise InputError("the worker confirms more drafted tokens than it sends")
            likelihoods = tuple(_likelihood(one) for one in confirmed.likelihoods)
            if likelihoods and len(likelihoods) != len(confirmed.tokens):
                raise InputError("the worker tells how likely tokens are that it does not send")
            return Confirmed(confirmed.position, _tokens(confirmed.tokens), confirmed.accepted, likelihoods)
        case "finished":
            done = message.finished
            if done.reason not in _REASONS:
                what = "the worker finished for no known reason"
                raise VersionMismatch(f"{what}; it is newer than this agent") if done.reason else InputError(what)
            _check_times(done.cloud_seconds)
            return Finished(Reason(done.reason), done.passes, done.verified, done.cloud_seconds)
        case "failure":
            code = next((code for code in grpc.StatusCode if code.value[0] == message.failure.status), None)
            error = exception_of(code or grpc.StatusCode.INTERNAL, message.failure.message)
            if isinstance(error, WorkerBusy) and 0 < message.failure.retry_seconds < math.inf:
                error.retry_seconds = message.failure.retry_seconds
            return error
        case _:
            raise _unknown(message, "the worker is newer than this agent")


def _check_times(*seconds: float) -> None:
    if not all(0 <= one < math.inf for one in seconds):
        raise InputError("the worker tells times that are none")


def _likelihood(message: pb.Likelihood) -> Likelihood:
    logprobs = (message.logprob, *message.logprobs)
    if len(message.tokens) != len(message.logprobs) or not all(-math.inf < logprob <= 0 for logprob in logprobs):
        raise InputError("the worker tells likelihoods that are none")
    return Likelihood(message.logprob, tuple(zip(message.tokens, message.logprobs, strict=True)))


def description_to_wire(description: Description) -> pb.Description:
    """A worker's description, encoded."""
    return pb.Description(**_fields(description) | {"wires": [wire.name for wire in description.wires]})


def description_from_wire(message: pb.Description) -> Description:
    """A worker's description, decoded. Raises InputError."""
    _check_times(message.queue_seconds)
    wires = tuple(wire for wire in Wire if pb.Tensor.Type.Value(wire.name) in message.wires)
    read = {"wires": wires, "features": tuple(message.features)}
    return Description(**{name: getattr(message, name) for name in Description.__slots__} | read)


def lacking(opening: Open, features: Collection[str]) -> tuple[str, ...]:
    """The features that `opening` requires and a worker with these `features` lacks."""
    return missing(agent_to_wire(opening).open.requires, features)
