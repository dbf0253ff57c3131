from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ("model", "all")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    model: str
    all: bool
    def __init__(self, model: _Optional[str] = ..., all: bool = ...) -> None: ...

class RestartRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestartAnswer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Listing(_message.Message):
    __slots__ = ("epoch", "version", "wanted", "workers", "outdated")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OUTDATED_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    version: int
    wanted: int
    workers: _containers.RepeatedCompositeFieldContainer[Listed]
    outdated: int
    def __init__(self, epoch: _Optional[str] = ..., version: _Optional[int] = ..., wanted: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[Listed, _Mapping]]] = ..., outdated: _Optional[int] = ...) -> None: ...

class Listed(_message.Message):
    __slots__ = ("name", "address", "standing", "since", "model", "start", "end", "queue_seconds", "sessions", "max_sessions", "failures", "why", "metrics")
    class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Listed.Standing]
        STARTING: _ClassVar[Listed.Standing]
        READY: _ClassVar[Listed.Standing]
        DRAINING: _ClassVar[Listed.Standing]
        RESTING: _ClassVar[Listed.Standing]
    UNKNOWN: Listed.Standing
    STARTING: Listed.Standing
    READY: Listed.Standing
    DRAINING: Listed.Standing
    RESTING: Listed.Standing
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    standing: Listed.Standing
    since: float
    model: str
    start: str
    end: str
    queue_seconds: float
    sessions: int
    max_sessions: int
    failures: int
    why: str
    metrics: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., standing: _Optional[_Union[Listed.Standing, str]] = ..., since: _Optional[float] = ..., model: _Optional[str] = ..., start: _Optional[str] = ..., end: _Optional[str] = ..., queue_seconds: _Optional[float] = ..., sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., failures: _Optional[int] = ..., why: _Optional[str] = ..., metrics: _Optional[str] = ...) -> None: ...
