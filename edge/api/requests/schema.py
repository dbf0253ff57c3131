"""The shape of requests: OpenAI's chat completions, and under `cutline` what they have no words for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from cutline.core.conversation import Detail, ImagePart, Message, Role, TextPart, VideoPart
from cutline.core.request import MAX_ALTERNATIVES, MAX_STOPS, Request
from cutline.core.sampling import (
    MAX_NAMED,
    Bias,
    FrequencyPenalty,
    PresencePenalty,
    Sampling,
    Temperature,
    TopP,
    chosen_seed,
)
from cutline.core.tools import MAX_TOOLS, Toolbox
from cutline.edge.api.requests.execution import SamplingExtension, execution_of
from cutline.edge.api.requests.fields import read_body, unfit
from cutline.edge.api.requests.images import only_users, stills_of
from cutline.edge.api.requests.response_format import ResponseFormat, format_of
from cutline.edge.api.requests.tools import (
    Choice,
    FunctionCalled,
    FunctionNamed,
    FunctionOffered,
    ToolCalled,
    ToolNamed,
    ToolOffered,
    toolbox,
)
from cutline.edge.api.requests.unserved import RULES
from cutline.edge.video.reader import part_of
from cutline.edge.video.sampled import SampledVideo
from cutline.errors import InputError

T = TypeVar("T")
TokenId = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,9}$")]


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base64 `data:` URL, or an address whose host the agent was allowed to fetch from.
    `detail` low makes it smaller, for models whose image tokens follow an image's size.
    """

    url: str
    detail: Detail | None = None


class ChatText(msgspec.Struct, tag_field="type", tag="text", frozen=True, forbid_unknown_fields=True):
    """Words."""

    text: str


class ChatImage(msgspec.Struct, tag_field="type", tag="image_url", frozen=True, forbid_unknown_fields=True):
    """An image, in a user's message."""

    image_url: ImageUrl


class VideoUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base64 `data:` URL of a film or an animation, or an address whose host the agent was allowed to fetch from."""

    url: str


class ChatVideo(msgspec.Struct, tag_field="type", tag="video_url", frozen=True, forbid_unknown_fields=True):
    """A video, in a user's message, of which some frames are looked at."""

    video_url: VideoUrl


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A turn of the conversation. What a `developer` says is the system's; null is no words.

    What a tool gave follows the assistant's calls, in their order.
    """

    role: Role | Literal["developer"]
    content: str | list[ChatText | ChatImage | ChatVideo] | None = None
    tool_calls: list[ToolCalled] | None = None
    tool_call_id: str | None = None

    @property
    def parts(self) -> list[ChatText | ChatImage | ChatVideo]:
        """Its words, images and videos in order."""
        return [ChatText(self.content)] if isinstance(self.content, str) else self.content or []


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage`: the last chunk counts tokens. `include_obfuscation` changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Extension(SamplingExtension, frozen=True, forbid_unknown_fields=True):
    """How to answer. `guesses`: a stream tells what the drafter believes too."""

    guesses: bool = False


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request. What would change the answer and is not served is refused.

    Without `max_tokens` the answer goes on to the end of the context.
    """

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: PresencePenalty | None = None
    frequency_penalty: FrequencyPenalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], msgspec.Meta(max_length=MAX_NAMED)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolOffered], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | ToolNamed | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None  # false: nothing of the answer is used for later ones
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
            response_format=format_of(question.sampling.constraint),
            **_tools_of(question.tools),
            store=None if question.store else False,
            logprobs=question.logprobs is not None,
            top_logprobs=question.logprobs,
            cutline=Extension(**execution_of(question), **more),
            **ours,
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its images and videos are, in order."""
        return tuple(_url_of(part) for part in self._seen)

    @property
    def videos(self) -> frozenset[int]:
        """Which of them are videos."""
        return frozenset(index for index, part in enumerate(self._seen) if isinstance(part, ChatVideo))

    @property
    def _seen(self) -> list[ChatImage | ChatVideo]:
        parts = (part for message in self.messages for part in message.parts)
        return [part for part in parts if not isinstance(part, ChatText)]

    def question(
        self, media: Sequence[bytes | SampledVideo], *, tenant: str = "", request_id: str = "", trace: str = ""
    ) -> Request:
        """The question of `tenant` about the `media` that its `urls` stand for, under `request_id` and `trace`.

        Raises InputError.
        """
        left = iter(media)
        messages = tuple(_turn(message, left) for message in self.messages)
        only_users(messages)
        return Request(
            messages=messages,
            images=stills_of(media),
            sampling=self._sampling(),
            max_tokens=self._most(),
            tools=self._toolbox(),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logprobs=self._alternatives(),
            store=self.store is not False,
            tenant=tenant,
            request_id=request_id,
            trace=trace,
            **execution_of(self.cutline),
        )

    @property
    def streamed(self) -> bool:
        """Whether the answer is told as it happens."""
        return bool(self.stream)

    @property
    def needs_worker(self) -> bool:
        """Whether nothing but a worker can answer."""
        return self.cutline.needs_worker

    def _sampling(self) -> Sampling:
        given = {name: getattr(of, name) for of in (self, self.cutline) for name in of.__struct_fields__}
        said = {name: given[name] for name in Sampling.__struct_fields__ if given.get(name) is not None}
        bias = tuple(sorted((int(token), value) for token, value in (self.logit_bias or {}).items()))
        seed = chosen_seed(self.seed, said.get("temperature", 0.0))
        constraint = None if self.response_format is None else self.response_format.constraint
        return Sampling(**said | {"seed": seed, "logit_bias": bias, "constraint": constraint})

    def _toolbox(self) -> Toolbox | None:
        named = self.tool_choice.function.name if isinstance(self.tool_choice, ToolNamed) else None
        choice = None if isinstance(self.tool_choice, ToolNamed) else self.tool_choice
        tools = [one.function.tool for one in self.tools or ()]
        return toolbox(tools, choice, named, parallel=self.parallel_tool_calls)

    def _most(self) -> int | None:
        given = {one for one in (self.max_tokens, self.max_completion_tokens) if one is not None}
        if len(given) > 1:
            raise InputError("max_tokens and max_completion_tokens differ; give one of them")
        return given.pop() if given else None

    def _alternatives(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InputError("top_logprobs needs logprobs; set it to true")
        return None


_FIELDS, _MORE_FIELDS = frozenset(ChatRequest.__struct_fields__), frozenset(Extension.__struct_fields__)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body of JSON. Raises Refused, which names every field that is unknown or not served."""
    request = read_body(body, ChatRequest, RULES)
    try:  # what no type says: 0, or from a hundredth on
        Sampling(temperature=_given(request.temperature, 0.0))
    except InputError as error:
        raise unfit(str(error), "temperature") from None
    return request


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _message(message: Message, images: Iterator[bytes]) -> ChatMessage:
    return ChatMessage(
        message.role,
        [ChatText(part.text) if isinstance(part, TextPart) else _shown(part, images) for part in message.parts],
        [ToolCalled(FunctionCalled(call.name, call.arguments)) for call in message.calls] or None,
    )


def _shown(part: ImagePart | VideoPart, images: Iterator[bytes]) -> ChatImage:
    if isinstance(part, VideoPart):
        raise InputError("frames of a video are not sent to another agent; send it the video itself, as video_url")
    return ChatImage(ImageUrl(_url(next(images)), None if part.detail == "auto" else part.detail))


def _tools_of(box: Toolbox | None) -> dict[str, Any]:
    """The fields that offer these tools."""
    if box is None:
        return {}
    offered = [ToolOffered(FunctionOffered(one.name, one.description, json.loads(one.parameters))) for one in box.tools]
    choice = box.choice if box.named is None else ToolNamed(FunctionNamed(box.named))
    return {"tools": offered, "tool_choice": choice, "parallel_tool_calls": box.parallel}


def _url(image: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(image).decode()


def _url_of(part: ChatImage | ChatVideo) -> str:
    return part.video_url.url if isinstance(part, ChatVideo) else part.image_url.url


def _turn(message: ChatMessage, media: Iterator[bytes | SampledVideo]) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    parts = tuple(
        TextPart(part.text) if isinstance(part, ChatText) else _pictured(part, next(media)) for part in message.parts
    )
    return Message(role, parts, tuple(one.call for one in message.tool_calls or ()))


def _pictured(part: ChatImage | ChatVideo, found: bytes | SampledVideo) -> ImagePart | VideoPart:
    if isinstance(part, ChatVideo):
        assert isinstance(found, SampledVideo)
        return part_of(found)
    return ImagePart(part.image_url.detail or "auto")
