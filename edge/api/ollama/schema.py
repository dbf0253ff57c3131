"""The shape of Ollama's requests, and under `cutline` what they have no words for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from cutline.core.constraint import Constraint
from cutline.core.conversation import ImagePart, Message, Role, TextPart
from cutline.core.request import MAX_STOPS, Request
from cutline.core.sampling import (
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
from cutline.core.tools import MAX_TOOLS, ToolCall
from cutline.edge.api.ollama.answers import OllamaTeller
from cutline.edge.api.requests.execution import ExecutionOptions, execution_of
from cutline.edge.api.requests.fields import Rules, read_body
from cutline.edge.api.requests.images import only_users, stills_of
from cutline.edge.api.requests.scanner import RECEIVED
from cutline.edge.api.requests.tools import ToolOffered, toolbox
from cutline.edge.api.streams import AnswerPieces
from cutline.edge.video.sampled import SampledVideo
from cutline.models.bundle import Manifest

IMAGE = "[img]"  # stands among words where an image of the same turn does

# Options that change no answer here: how a model is run, and what goes with mirostat alone.
_RUNNING = [
    "numa",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "embedding_only",
    "num_thread",
    "num_keep",
    "mirostat_eta",
    "mirostat_tau",
]
_OPTIONS = Rules(
    ignored=dict.fromkeys(_RUNNING, (bool, int, float)),
    neutral={"mirostat": (0,), "penalize_newline": (True,), "repeat_last_n": (-1,), "tfs_z": (1,), "typical_p": (1,)},
)
_IGNORED: dict[str, tuple[type, ...]] = {
    "keep_alive": (str, int, float),  # the models stay as long as the agent does
    "shift": (bool,),  # what becomes of a conversation that is too long: here it is refused
    "truncate": (bool,),
}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "format": ("",),
    "logprobs": (False,),
    "think": (False,),
    "top_logprobs": (0,),
}
_CHAT_RULES = Rules(
    ignored=_IGNORED,
    neutral=_NEUTRAL,
    inner={
        "messages": Rules(
            ignored={"name": (str,), "tool_name": (str,), "tool_call_id": (str,)}, neutral={"thinking": ("",)}
        ),
        "options": _OPTIONS,
    },
)
_PROMPT_RULES = Rules(
    ignored=_IGNORED,
    neutral=_NEUTRAL | {"context": ([],), "raw": (False,), "suffix": ("",), "template": ("",)},
    inner={"options": _OPTIONS},
)


class OllamaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens are chosen, and how many. Without any of it the likeliest is, as everywhere here.

    `num_predict` below 1 goes on to the end of the context, as it does where none is given.
    """

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    seed: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] | None = None
    num_predict: Annotated[int, msgspec.Meta(ge=-2, le=2**31 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: PresencePenalty | None = None
    frequency_penalty: FrequencyPenalty | None = None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen. Raises InputError."""
        names = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        said = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = chosen_seed(self.seed, said.get("temperature", 0.0))
        return Sampling(**said, seed=seed, repetition_penalty=self.repeat_penalty)

    @property
    def most(self) -> int | None:
        """How many tokens an answer may have; None for as many as fit."""
        return None if self.num_predict is None or self.num_predict < 1 else self.num_predict


class OllamaFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that was called."""

    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None


class OllamaCalled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call in an answer that is sent back."""

    function: OllamaFunction
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A turn of the conversation: words, and images in base64, in a user's turn alone.

    An image stands where its `[img]` is among the words, the first image at the first; those that have none stand
    before all words.
    """

    role: Role
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCalled] | None = None

    @property
    def message(self) -> Message:
        """It as one of a Request."""
        first, *behind = self._words
        parts: list[TextPart | ImagePart] = [ImagePart()] * (len(self.pictures) - len(behind))
        parts += [TextPart(first)] if first else []
        for words in behind:
            parts += [ImagePart(), TextPart(words)] if words else [ImagePart()]
        calls = (
            ToolCall(name=one.function.name, arguments=msgspec.json.encode(one.function.arguments).decode())
            for one in self.tool_calls or ()
        )
        return Message(self.role, tuple(parts), tuple(calls))

    @property
    def pictures(self) -> list[str]:
        """Its images, in the order of their places."""
        images, marked = self.images or [], len(self._words) - 1
        return [*images[marked:], *images[:marked]]

    @property
    def _words(self) -> list[str]:
        """The words before, between and behind the images that have a place among them."""
        return (self.content or "").split(IMAGE, len(self.images or ()))


class OllamaChat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request of `/api/chat`; without messages it asks for the model to be loaded. `system` is said before them."""

    model: str | None = None
    messages: list[OllamaTurn] | None = None
    system: str | None = None
    tools: Annotated[list[ToolOffered], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    stream: bool | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    cutline: ExecutionOptions = ExecutionOptions()

    @property
    def turns(self) -> list[OllamaTurn]:
        """The conversation."""
        asked = self.messages or []
        return [OllamaTurn("system", self.system), *asked] if self.system and asked else asked


class OllamaPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request of `/api/generate`; without a prompt it asks for the model to be loaded."""

    model: str | None = None
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    stream: bool | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    cutline: ExecutionOptions = ExecutionOptions()

    @property
    def turns(self) -> list[OllamaTurn]:
        """It as a conversation."""
        asked = [OllamaTurn("user", self.prompt, self.images)] if self.prompt or self.images else []
        return [OllamaTurn("system", self.system), *asked] if self.system and asked else asked


@dataclass(frozen=True, slots=True)
class OllamaAsked:
    """What either asks."""

    given: OllamaChat | OllamaPrompt
    turns: Sequence[OllamaTurn]

    @property
    def model(self) -> str | None:
        """The name that it asks for."""
        return self.given.model

    @property
    def needs_worker(self) -> bool:
        """Whether nothing but a worker can answer."""
        return self.given.cutline.needs_worker

    @property
    def streamed(self) -> bool:
        """Whether the answer is told as it happens, as it is unless that is declined."""
        return self.given.stream is not False

    @property
    def urls(self) -> tuple[str, ...]:
        """Its images, in order, as URLs or by the names that they were received under."""
        images = (one for turn in self.turns for one in turn.pictures)
        return tuple(one if one.startswith(RECEIVED) else f"data:;base64,{one}" for one in images)

    @property
    def videos(self) -> frozenset[int]:
        """None of them is a video."""
        return frozenset()

    def question(
        self, media: Sequence[bytes | SampledVideo], *, tenant: str = "", request_id: str = "", trace: str = ""
    ) -> Request:
        """The question about the `media` that its `urls` stand for. Raises InputError."""
        options = self.given.options or OllamaOptions()
        offered = self.given.tools if isinstance(self.given, OllamaChat) else None
        messages = tuple(turn.message for turn in self.turns)
        only_users(messages)
        return Request(
            messages=messages,
            images=stills_of(media),
            sampling=msgspec.structs.replace(options.sampling, constraint=_constraint(self.given.format)),
            max_tokens=options.most,
            tools=toolbox([one.function.tool for one in offered or ()], None, None, parallel=None),
            stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
            tenant=tenant,
            request_id=request_id,
            trace=trace,
            **execution_of(self.given.cutline),
        )

    def teller(self, manifest: Manifest, question: Request | None = None) -> OllamaTeller:
        """What tells the answer."""
        pieces = None if question is None else AnswerPieces(manifest, question)
        return OllamaTeller(self.given.model or manifest.name, pieces, chat=isinstance(self.given, OllamaChat))


def read_chat(body: bytes) -> OllamaAsked:
    """The chat in a body of JSON. Raises Refused."""
    chat = read_body(body, OllamaChat, _CHAT_RULES)
    return OllamaAsked(chat, chat.turns)


def read_prompt(body: bytes) -> OllamaAsked:
    """Likewise the prompt. Raises Refused."""
    prompt = read_body(body, OllamaPrompt, _PROMPT_RULES)
    return OllamaAsked(prompt, prompt.turns)


def _constraint(asked: str | dict[str, Any] | None) -> Constraint | None:
    """What an answer keeps to: any JSON object, or a schema. Raises InputError."""
    if asked is None:
        return None
    return Constraint.json_schema(asked) if isinstance(asked, dict) else Constraint.json_object()
