"""The shape of requests: OpenAI's chat completions, and under `cutline` what they have no words for."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from cutline.core.conversation import ImagePart, Message, Role, TextPart
from cutline.core.json_errors import UNREADABLE
from cutline.core.request import MAX_ALTERNATIVES, MAX_NOISE, MAX_STOPS, MAX_TIMEOUT, Mode, Request
from cutline.core.sampling import (
    MAX_BIASES,
    Bias,
    FrequencyPenalty,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Sampling,
    Temperature,
    TopK,
    TopP,
    chosen_seed,
)
from cutline.core.wire import Wire
from cutline.edge.api.errors import Fault, Refused, unreadable
from cutline.edge.api.requests.unserved import NOT_SERVED, asking
from cutline.errors import InputError

T = TypeVar("T")
TokenId = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,9}$")]

MAX_NAMED = 20  # fields that one refusal names
MAX_VALUES = 200_000  # in a request: more words than any model here takes, and what reads in a moment
MAX_PARTS = 1000  # messages, and parts of one


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base64 `data:` URL, or an address whose host the agent was allowed to fetch from. `detail` changes nothing."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ChatText(msgspec.Struct, tag_field="type", tag="text", frozen=True, forbid_unknown_fields=True):
    """Words."""

    text: str


class ChatImage(msgspec.Struct, tag_field="type", tag="image_url", frozen=True, forbid_unknown_fields=True):
    """An image, in a user's message."""

    image_url: ImageUrl


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A turn of the conversation. What a `developer` says is the system's; null is no words."""

    role: Role | Literal["developer"]
    content: str | list[ChatText | ChatImage] | None

    @property
    def parts(self) -> list[ChatText | ChatImage]:
        """Its words and images in order."""
        return [ChatText(self.content)] if isinstance(self.content, str) else self.content or []


_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_SomeShare = Annotated[float, msgspec.Meta(gt=0, le=1)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage`: the last chunk counts tokens."""

    include_usage: bool | None = None


class Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to answer. `guesses`: a stream tells what the drafter believes too."""

    mode: Mode = Mode.AUTO
    effort: _Share = 1.0
    cut: str = "image"
    wire: Wire = Wire.FLOAT32
    keep_image_tokens: _SomeShare = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT)] = 60.0
    exact: bool = False
    image_must_stay: bool = False
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    min_agreement: _Share | None = None
    max_leak: _Share | None = None
    noise: Annotated[float, msgspec.Meta(ge=0, le=MAX_NOISE)] = 0.0
    correct_seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT)] = 0.0
    guesses: bool = False

    @property
    def needs_worker(self) -> bool:
        """Whether nothing but a worker can answer so."""
        return self.exact or self.mode not in (Mode.EDGE, Mode.AUTO)


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request. What would change the answer and is not served is refused."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: PresencePenalty | None = None
    frequency_penalty: FrequencyPenalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], msgspec.Meta(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    cutline: Extension = Extension()

    @classmethod
    def asking(cls, question: Request) -> ChatRequest:
        """The request that asks `question`; the inverse of `question`."""
        images, sampling = iter(question.images), msgspec.structs.asdict(question.sampling)
        sampling["logit_bias"] = {str(token): value for token, value in question.sampling.logit_bias} or None
        ours, more = ({name: sampling[name] for name in sampling if name in of} for of in (_FIELDS, _MORE_FIELDS))
        return cls(
            messages=[_message(message, images) for message in question.messages],
            max_tokens=question.max_tokens,
            stop=list(question.stop) or None,
            logprobs=question.logprobs is not None,
            top_logprobs=question.logprobs,
            cutline=Extension(
                mode=question.mode,
                effort=question.effort,
                cut=question.cut,
                wire=question.wire,
                keep_image_tokens=question.keep_image_tokens,
                timeout=question.timeout,
                exact=question.exact,
                image_must_stay=question.image_must_stay,
                max_latency_ms=question.max_latency_ms,
                min_agreement=question.min_agreement,
                max_leak=question.max_leak,
                noise=question.noise,
                correct_seconds=question.correct_seconds,
                **more,
            ),
            **ours,
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its images are, in order."""
        parts = (part for message in self.messages for part in message.parts)
        return tuple(part.image_url.url for part in parts if isinstance(part, ChatImage))

    def question(self, images: Sequence[bytes], *, tenant: str = "", request_id: str = "", trace: str = "") -> Request:
        """The question of `tenant` about the `images` that its `urls` stand for, under `request_id` and `trace`.

        Raises InputError.
        """
        for message in self.messages:
            if message.role != "user" and any(isinstance(part, ChatImage) for part in message.parts):
                raise InputError(f"a message of the {message.role} has an image; only the user's may")
        how = self.cutline
        return Request(
            messages=tuple(_turn(message) for message in self.messages),
            images=tuple(images),
            mode=how.mode,
            sampling=self._sampling(),
            max_tokens=self._most(),
            effort=how.effort,
            cut=how.cut,
            wire=how.wire,
            keep_image_tokens=how.keep_image_tokens,
            timeout=how.timeout,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logprobs=self._alternatives(),
            correct_seconds=how.correct_seconds,
            exact=how.exact,
            image_must_stay=how.image_must_stay,
            max_latency_ms=how.max_latency_ms,
            min_agreement=how.min_agreement,
            max_leak=how.max_leak,
            noise=how.noise,
            tenant=tenant,
            request_id=request_id,
            trace=trace,
        )

    def _sampling(self) -> Sampling:
        given = {name: getattr(of, name) for of in (self, self.cutline) for name in of.__struct_fields__}
        said = {name: given[name] for name in Sampling.__struct_fields__ if given[name] is not None}
        bias = tuple(sorted((int(token), value) for token, value in (self.logit_bias or {}).items()))
        return Sampling(**said | {"seed": chosen_seed(self.seed, said.get("temperature", 0.0)), "logit_bias": bias})

    def _most(self) -> int:
        given = {one for one in (self.max_tokens, self.max_completion_tokens) if one is not None}
        if len(given) > 1:
            raise InputError("max_tokens and max_completion_tokens differ; give one of them")
        return given.pop() if given else 64

    def _alternatives(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InputError("top_logprobs needs logprobs; set it to true")
        return None


_FIELDS, _MORE_FIELDS = frozenset(ChatRequest.__struct_fields__), frozenset(Extension.__struct_fields__)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body of JSON. Raises Refused, which names every field that is unknown or not served."""
    # Counted before any is read: a body of nothing but commas would take a hundred times its size.
    if sum(body.count(one) for one in (b"{", b"[", b",")) > MAX_VALUES:
        raise _unfit(f"the request has over {MAX_VALUES} values; send less")
    try:
        raw = _LENIENT.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from None
    _check_counts(raw)
    wanted = asking(raw)
    try:
        request = msgspec.convert(wanted, ChatRequest)
    except msgspec.ValidationError as error:
        unknown = _unknown(msgspec.inspect.type_info(ChatRequest), wanted, "")
        if names := list(islice(unknown, MAX_NAMED + 1)):
            raise _unwelcome(names) from None
        raise unreadable(error) from None
    try:  # what no type says: 0, or from a hundredth on
        Sampling(temperature=_given(request.temperature, 0.0))
    except InputError as error:
        raise _unfit(str(error), "temperature") from None
    return request


_LENIENT = msgspec.json.Decoder(float_hook=float)  # 1e999 is infinite, and what has no such field says so


def _check_counts(raw: Any) -> None:
    """That a request has no more messages, nor any of them more parts, than a request may. Raises Refused."""
    messages = raw.get("messages") if isinstance(raw, dict) else None
    if not isinstance(messages, list):
        return
    if len(messages) > MAX_PARTS:
        raise _unfit(f"{len(messages)} messages are too many; send {MAX_PARTS} at most", "messages")
    for index, one in enumerate(messages):
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, list) and len(content) > MAX_PARTS:
            raise _unfit(f"{len(content)} parts are too many; send {MAX_PARTS} at most", f"messages[{index}].content")


def _unfit(message: str, param: str | None = None) -> Refused:
    return Refused(400, Fault(message, InputError.__name__, param))


def _unknown(kind: msgspec.inspect.Type, value: Any, place: str) -> Iterator[str]:
    """The paths of the fields in `value` that its type does not have."""
    match kind:
        case msgspec.inspect.UnionType(types):
            for one in types:
                if not isinstance(one, msgspec.inspect.StructType) or one.tag_field is None or _tag(one, value):
                    yield from _unknown(one, value, place)
        case msgspec.inspect.ListType(item) if isinstance(value, list):
            for index, one in enumerate(value[:MAX_PARTS]):
                yield from _unknown(item, one, f"{place}[{index}]")
        case msgspec.inspect.StructType() if isinstance(value, dict):
            fields = {field.encode_name: field.type for field in kind.fields}
            for name, one in value.items():
                path = f"{place}.{name}" if place else name
                if name in fields:
                    yield from _unknown(fields[name], one, path)
                elif name != kind.tag_field:
                    yield path


def _tag(kind: msgspec.inspect.StructType, value: Any) -> bool:
    """Whether `value` says that it is of this type, one of several."""
    return isinstance(value, dict) and kind.tag_field is not None and value.get(kind.tag_field) == kind.tag


def _unwelcome(names: list[str]) -> Refused:
    known = [name for name in names[:MAX_NAMED] if name in NOT_SERVED]
    unknown = [name for name in names[:MAX_NAMED] if name not in NOT_SERVED]
    said = [
        f"{label} {', '.join(_printable(name) for name in some)}"
        for label, some in (("what is not served here:", known), ("unknown fields:", unknown))
        if some
    ]
    message = f"the request has {', and '.join(said)}{', ...' if names[MAX_NAMED:] else ''}; leave these out"
    return Refused(400, Fault(message, InputError.__name__, _printable(names[0]), "unsupported_parameter"))


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name[:60])


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _message(message: Message, images: Iterator[bytes]) -> ChatMessage:
    return ChatMessage(
        message.role,
        [
            ChatText(part.text)
            if isinstance(part, TextPart)
            else ChatImage(ImageUrl("data:application/octet-stream;base64," + base64.b64encode(next(images)).decode()))
            for part in message.parts
        ],
    )


def _turn(message: ChatMessage) -> Message:
    parts = (ImagePart() if isinstance(part, ChatImage) else TextPart(part.text) for part in message.parts)
    return Message("system" if message.role == "developer" else message.role, tuple(parts))
