"""The shape of requests for responses, and under `cutline` what OpenAI has no words for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from cutline.core.conversation import Detail, ImagePart, Message, Role, TextPart
from cutline.core.request import Request
from cutline.core.sampling import Sampling, Temperature, TopP, chosen_seed
from cutline.core.tools import MAX_TOOLS, Tool, Toolbox, ToolCall
from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.requests.execution import SamplingExtension, execution_of, sampling_of
from cutline.edge.api.requests.fields import Rules, read_body
from cutline.edge.api.requests.images import only_users, stills_of
from cutline.edge.api.requests.response_format import JsonObjectFormat, NamedSchema
from cutline.edge.api.requests.tools import Choice, toolbox
from cutline.edge.api.responses.narrator import ResponseTeller
from cutline.edge.api.responses.objects import (
    FunctionChoice,
    FunctionTool,
    OutputCall,
    OutputMessage,
    ResponseObject,
    TextSettings,
    TextType,
)
from cutline.edge.api.responses.store import KeptResponse, ResponseStore
from cutline.edge.api.streams import AnswerPieces
from cutline.edge.video.sampled import SampledVideo
from cutline.errors import InputError
from cutline.models.bundle import Manifest


class _InputRules(Rules):
    """A turn of the conversation need not say that it is one."""

    def wanted(self, raw: Any) -> Any:
        if isinstance(raw, dict) and "type" not in raw and "role" in raw:
            raw = raw | {"type": "message"}
        return super().wanted(raw)


_RULES = Rules(
    ignored={
        "prompt_cache_key": (str,),
        "prompt_cache_retention": (str,),
        "safety_identifier": (str,),
        "service_tier": (str,),
        "user": (str,),
    },
    neutral={
        "background": (False,),
        "conversation": (),
        "include": ([], ["reasoning.encrypted_content"]),  # no model here reasons in tokens of their own
        "max_tool_calls": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}),
        "stream_options": ({}, {"include_obfuscation": True}, {"include_obfuscation": False}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    },
    inner={
        "input": _InputRules(  # an answer that is sent back has these
            ignored={"id": (str,), "status": (str,)},
            neutral={"phase": ()},
            inner={"content": Rules(neutral={"annotations": ([],), "logprobs": ([],), "file_id": ()})},
        ),
        "text": Rules(neutral={"format": ({"type": "text"},), "verbosity": ("medium",)}),
    },
)


class InputText(msgspec.Struct, tag_field="type", tag="input_text", frozen=True, forbid_unknown_fields=True):
    """Words."""

    text: str


class SaidText(msgspec.Struct, tag_field="type", tag="output_text", frozen=True, forbid_unknown_fields=True):
    """Words of an earlier answer."""

    text: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image", frozen=True, forbid_unknown_fields=True):
    """An image, in a user's message: a `data:` URL, or an address that may be fetched. `detail` as in chats."""

    image_url: str
    detail: Detail | None = None


class InputCall(msgspec.Struct, tag_field="type", tag="function_call", frozen=True, forbid_unknown_fields=True):
    """A call in an answer that is sent back."""

    name: str
    arguments: str
    call_id: str | None = None


class InputResult(
    msgspec.Struct, tag_field="type", tag="function_call_output", frozen=True, forbid_unknown_fields=True
):
    """What a function gave; results follow the calls, in their order."""

    output: str
    call_id: str | None = None


class InputTurn(msgspec.Struct, tag_field="type", tag="message", frozen=True, forbid_unknown_fields=True):
    """A turn of the conversation."""

    role: Role | Literal["developer"]
    content: str | list[InputText | SaidText | InputImage]

    @property
    def images(self) -> tuple[str, ...]:
        """Where its images are."""
        parts = () if isinstance(self.content, str) else self.content
        return tuple(part.image_url for part in parts if isinstance(part, InputImage))

    @property
    def message(self) -> Message:
        """It as one of a Request."""
        parts = [InputText(self.content)] if isinstance(self.content, str) else self.content
        role: Role = "system" if self.role == "developer" else self.role
        return Message(
            role,
            tuple(
                ImagePart(one.detail or "auto") if isinstance(one, InputImage) else TextPart(one.text) for one in parts
            ),
        )


class TextAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the words are formed: as they come, or as JSON."""

    format: JsonObjectFormat | NamedSchema | None = None


class ResponseExtension(SamplingExtension, frozen=True, forbid_unknown_fields=True):
    """How to answer. The same `seed` gives the same answer."""

    seed: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] | None = None


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request. Without `max_output_tokens` the answer goes on to the end of the context."""

    input: str | Annotated[list[InputTurn | InputCall | InputResult], msgspec.Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    text: TextAsked | None = None
    metadata: dict[str, str] | None = None
    tools: Annotated[list[FunctionTool], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    cutline: ResponseExtension = ResponseExtension()

    @property
    def turns(self) -> list[InputTurn | InputCall | InputResult]:
        """The conversation that it brings."""
        return [InputTurn("user", self.input)] if isinstance(self.input, str) else self.input

    @property
    def messages(self) -> tuple[Message, ...]:
        """It as a Request's: calls are of the turn before, where that is the assistant's."""
        found = list[Message]()
        for turn in self.turns:
            match turn:
                case InputCall(name, arguments):
                    call = ToolCall(name=name, arguments=arguments)
                    said = found.pop() if found and found[-1].role == "assistant" else Message("assistant", ())
                    found.append(Message("assistant", said.parts, (*said.calls, call)))
                case InputResult(output):
                    found.append(Message("tool", (TextPart(output),)))
                case InputTurn():
                    found.append(turn.message)
        return tuple(found)

    @property
    def toolbox(self) -> Toolbox | None:
        """What may be called. Raises InputError."""
        named = self.tool_choice.name if isinstance(self.tool_choice, FunctionChoice) else None
        choice = None if isinstance(self.tool_choice, FunctionChoice) else self.tool_choice
        tools = [Tool.of(one.name, one.description, one.parameters) for one in self.tools or ()]
        return toolbox(tools, choice, named, parallel=self.parallel_tool_calls)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen. Raises InputError."""
        how, temperature = self.cutline, self.temperature or 0.0
        return Sampling(
            **sampling_of(how),
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=chosen_seed(how.seed, temperature),
            constraint=None if self.format is None else self.format.constraint,
        )

    @property
    def format(self) -> JsonObjectFormat | NamedSchema | None:
        """What the answer keeps to; None for words as they come."""
        return None if self.text is None else self.text.format


@dataclass(frozen=True, slots=True)
class ResponseAsked:
    """What is asked by a `tenant` whose conversations are in a store."""

    given: ResponseRequest
    before: KeptResponse | None
    tenant: str
    store: ResponseStore

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
        """Whether the answer is told as it happens."""
        return bool(self.given.stream)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its own images are, in order."""
        return tuple(url for turn in self.given.turns if isinstance(turn, InputTurn) for url in turn.images)

    @property
    def videos(self) -> frozenset[int]:
        """None of them is a video."""
        return frozenset()

    def question(
        self, media: Sequence[bytes | SampledVideo], *, tenant: str = "", request_id: str = "", trace: str = ""
    ) -> Request:
        """The question about the `media` that its `urls` stand for, and those before. Raises InputError."""
        given, before = self.given, self.before
        told = [Message("system", (TextPart(given.instructions),))] if given.instructions else []
        messages = (*told, *(before.messages if before else ()), *given.messages)
        only_users(messages)
        return Request(
            messages=messages,
            images=(*(before.images if before else ()), *stills_of(media)),
            sampling=given.sampling,
            max_tokens=given.max_output_tokens,
            tools=given.toolbox,
            store=given.store is not False,
            tenant=tenant,
            request_id=request_id,
            trace=trace,
            **execution_of(given.cutline),
        )

    def teller(self, manifest: Manifest, question: Request) -> ResponseTeller:
        """What tells the answer, and keeps it to go on from, unless that is declined."""
        given, kept = self.given, self.given.store is not False
        begun = ResponseObject(
            id=f"resp_{secrets.token_hex(24)}",
            created_at=int(time.time()),
            status="in_progress",
            model=manifest.name,
            instructions=given.instructions,
            max_output_tokens=given.max_output_tokens,
            metadata=given.metadata or {},
            previous_response_id=given.previous_response_id,
            store=kept,
            temperature=question.sampling.temperature,
            tools=tuple(given.tools or ()),
            tool_choice=given.tool_choice or "auto",
            parallel_tool_calls=given.parallel_tool_calls is not False,
            top_p=question.sampling.top_p,
            text=TextSettings(given.format or TextType()),
        )

        def keep(made: ResponseObject) -> None:
            texts = tuple(TextPart(item.text) for item in made.output if isinstance(item, OutputMessage))
            calls = (item for item in made.output if isinstance(item, OutputCall))
            said = Message("assistant", texts, tuple(ToolCall(name=one.name, arguments=one.arguments) for one in calls))
            written = 0 if made.usage is None else made.usage.output_tokens
            # Instructions are of one answer: the next one has its own.
            turns = question.messages[1:] if given.instructions else question.messages
            self.store.keep(self.tenant, KeptResponse(made, written, (*turns, said), question.images))

        pieces = AnswerPieces(manifest, question)
        return ResponseTeller(begun, pieces, keep if kept else lambda made: None)


def read_response(body: bytes, tenant: str, store: ResponseStore) -> ResponseAsked:
    """The request in a body of JSON. Raises Refused, also where what it goes on from is not kept."""
    given = read_body(body, ResponseRequest, _RULES, turns="input")
    name = given.previous_response_id
    before = None if name is None else store.find(tenant, name)
    if name is not None and before is None:
        message = f"no response {name[:80]!r} is kept; send the conversation itself"
        fault = Fault(message, InputError.__name__, "previous_response_id", "previous_response_not_found")
        raise Refused(400, fault)
    return ResponseAsked(given, before, tenant, store)
