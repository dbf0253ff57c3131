from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMAL: _ClassVar[Priority]
    INTERACTIVE: _ClassVar[Priority]
    BACKGROUND: _ClassVar[Priority]
NORMAL: Priority
INTERACTIVE: Priority
BACKGROUND: Priority

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("model", "name", "version", "vision_layers", "decoder_layers", "context", "sessions", "max_sessions", "start", "end", "queue_seconds", "draining", "wires", "features", "blocked")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VISION_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DECODER_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    WIRES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    version: str
    vision_layers: int
    decoder_layers: int
    context: int
    sessions: int
    max_sessions: int
    start: str
    end: str
    queue_seconds: float
    draining: bool
    wires: _containers.RepeatedScalarFieldContainer[Tensor.Type]
    features: _containers.RepeatedScalarFieldContainer[str]
    blocked: str
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., vision_layers: _Optional[int] = ..., decoder_layers: _Optional[int] = ..., context: _Optional[int] = ..., sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., start: _Optional[str] = ..., end: _Optional[str] = ..., queue_seconds: _Optional[float] = ..., draining: bool = ..., wires: _Optional[_Iterable[_Union[Tensor.Type, str]]] = ..., features: _Optional[_Iterable[str]] = ..., blocked: _Optional[str] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("data", "answer")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    answer: int
    def __init__(self, data: _Optional[bytes] = ..., answer: _Optional[int] = ...) -> None: ...

class ProbeAnswer(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("open", "image", "boundary", "draft", "cancel")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    open: Open
    image: ImageChunk
    boundary: Boundary
    draft: Draft
    cancel: Cancel
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., image: _Optional[_Union[ImageChunk, _Mapping]] = ..., boundary: _Optional[_Union[Boundary, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("model", "tokens", "prompt_length", "cut", "images", "max_tokens", "sampling", "effort", "draft", "grids", "digests", "known", "likelihoods", "alternatives", "request_id", "pieces", "times", "store", "priority", "requires")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EFFORT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    GRIDS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOODS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    prompt_length: int
    cut: str
    images: int
    max_tokens: int
    sampling: Sampling
    effort: float
    draft: _containers.RepeatedScalarFieldContainer[int]
    grids: _containers.RepeatedCompositeFieldContainer[Grid]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    known: int
    likelihoods: bool
    alternatives: int
    request_id: str
    pieces: _containers.RepeatedScalarFieldContainer[int]
    times: _containers.RepeatedScalarFieldContainer[int]
    store: bool
    priority: Priority
    requires: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., prompt_length: _Optional[int] = ..., cut: _Optional[str] = ..., images: _Optional[int] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., effort: _Optional[float] = ..., draft: _Optional[_Iterable[int]] = ..., grids: _Optional[_Iterable[_Union[Grid, _Mapping]]] = ..., digests: _Optional[_Iterable[bytes]] = ..., known: _Optional[int] = ..., likelihoods: bool = ..., alternatives: _Optional[int] = ..., request_id: _Optional[str] = ..., pieces: _Optional[_Iterable[int]] = ..., times: _Optional[_Iterable[int]] = ..., store: bool = ..., priority: _Optional[_Union[Priority, str]] = ..., requires: _Optional[_Iterable[str]] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("rows", "cols")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    cols: int
    def __init__(self, rows: _Optional[int] = ..., cols: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "constraint", "stop_token_ids")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[Bias]
    constraint: Constraint
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[Bias, _Mapping]]] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("grammar", "text")
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    grammar: str
    text: str
    def __init__(self, grammar: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Bias(_message.Message):
    __slots__ = ("token", "value")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    token: int
    value: float
    def __init__(self, token: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ("data", "last")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    last: bool
    def __init__(self, data: _Optional[bytes] = ..., last: bool = ...) -> None: ...

class Boundary(_message.Message):
    __slots__ = ("rows", "last", "tensor")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    rows: Tensor
    last: bool
    tensor: str
    def __init__(self, rows: _Optional[_Union[Tensor, _Mapping]] = ..., last: bool = ..., tensor: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("type", "shape", "data", "scales")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Tensor.Type]
        FLOAT32: _ClassVar[Tensor.Type]
        FLOAT16: _ClassVar[Tensor.Type]
        BFLOAT16: _ClassVar[Tensor.Type]
        INT8: _ClassVar[Tensor.Type]
        INT4: _ClassVar[Tensor.Type]
    UNKNOWN: Tensor.Type
    FLOAT32: Tensor.Type
    FLOAT16: Tensor.Type
    BFLOAT16: Tensor.Type
    INT8: Tensor.Type
    INT4: Tensor.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    type: Tensor.Type
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    scales: bytes
    def __init__(self, type: _Optional[_Union[Tensor.Type, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., scales: _Optional[bytes] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("position", "tokens", "rows")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    rows: Tensor
    def __init__(self, position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("opened", "confirmed", "finished", "failure")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    confirmed: Confirmed
    finished: Finished
    failure: Failure
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., confirmed: _Optional[_Union[Confirmed, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "upload_seconds", "prepare_seconds", "queue_seconds", "kept", "reused")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREPARE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    session: str
    upload_seconds: float
    prepare_seconds: float
    queue_seconds: float
    kept: bool
    reused: int
    def __init__(self, session: _Optional[str] = ..., upload_seconds: _Optional[float] = ..., prepare_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., kept: bool = ..., reused: _Optional[int] = ...) -> None: ...

class Confirmed(_message.Message):
    __slots__ = ("position", "tokens", "accepted", "likelihoods")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOODS_FIELD_NUMBER: _ClassVar[int]
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    accepted: int
    likelihoods: _containers.RepeatedCompositeFieldContainer[Likelihood]
    def __init__(self, position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., accepted: _Optional[int] = ..., likelihoods: _Optional[_Iterable[_Union[Likelihood, _Mapping]]] = ...) -> None: ...

class Likelihood(_message.Message):
    __slots__ = ("logprob", "tokens", "logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("status", "message", "retry_seconds")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    status: int
    message: str
    retry_seconds: float
    def __init__(self, status: _Optional[int] = ..., message: _Optional[str] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "passes", "verified", "cloud_seconds")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Finished.Reason]
        STOP: _ClassVar[Finished.Reason]
        LENGTH: _ClassVar[Finished.Reason]
    UNKNOWN: Finished.Reason
    STOP: Finished.Reason
    LENGTH: Finished.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    CLOUD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: Finished.Reason
    passes: int
    verified: int
    cloud_seconds: float
    def __init__(self, reason: _Optional[_Union[Finished.Reason, str]] = ..., passes: _Optional[int] = ..., verified: _Optional[int] = ..., cloud_seconds: _Optional[float] = ...) -> None: ...
