"""How a request is to be answered, which no other API has words for: what stands under `cutline` in every one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from cutline.core.request import MAX_NOISE, MAX_TIMEOUT, Mode, Priority
from cutline.core.sampling import MinP, RepetitionPenalty, Sampling, StopTokenIds, TopK
from cutline.core.wire import Wire

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_SomeShare = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ExecutionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to answer; each field is a Request's of the same name."""

    mode: Mode = Mode.AUTO
    effort: _Share = 1.0
    cut: str = "image"
    wire: Wire = Wire.FLOAT32
    image_tokens: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None
    keep_image_tokens: _SomeShare = 1.0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT)] = 60.0
    priority: Priority = Priority.NORMAL
    exact: bool = False
    image_must_stay: bool = False
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    min_agreement: _Share | None = None
    max_leak: _Share | None = None
    noise: Annotated[float, msgspec.Meta(ge=0, le=MAX_NOISE)] = 0.0
    correct_seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT)] = 0.0

    @property
    def needs_worker(self) -> bool:
        """Whether nothing but a worker can answer so."""
        return self.exact or self.mode not in (Mode.EDGE, Mode.AUTO)


class SamplingExtension(ExecutionOptions, frozen=True, forbid_unknown_fields=True):
    """How to answer, and what OpenAI has no words for of how tokens are chosen: fields of Sampling."""

    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty | None = None
    stop_token_ids: StopTokenIds = ()


def execution_of(source: object) -> dict[str, Any]:
    """The fields of an ExecutionOptions that `source` has, which may be a Request."""
    return {name: getattr(source, name) for name in ExecutionOptions.__struct_fields__}


def sampling_of(source: SamplingExtension) -> dict[str, Any]:
    """The fields of a Sampling that a SamplingExtension has."""
    return {name: getattr(source, name) for name in _MORE_SAMPLING}


_MORE_SAMPLING = [name for name in Sampling.__struct_fields__ if name in SamplingExtension.__struct_fields__]
