"""Builds prompts: from a conversation to token ids, by the bundle's chat template, image markers and vocabulary.

The template is the bundle's own, never a request's. It still runs in a sandbox, with bounded steps and output.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minijinja import Environment, TemplateError

from cutline.core.conversation import ImagePart, Message, Part, TextPart, VideoPart, every_part
from cutline.core.tools import Tool
from cutline.errors import BundleError, CutlineError, InputError, PromptError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.vocabulary import Vocabulary

TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE = 16 * 1024  # bytes
MAX_STEPS = 20_000  # of the template's interpreter; a conversation of 500 messages takes about that many
FEW_PARTS = 100  # of messages: if so few exceed MAX_STEPS, the template is at fault, not the conversation
MAX_TEXT = 100_000  # characters in all messages
MAX_RENDERED = 256 * 1024  # characters, image markers not yet expanded


@dataclass(frozen=True, slots=True)
class Prompt:
    """The decoder's input: token `ids`, and the positions in them of the images' rows, in order."""

    ids: tuple[int, ...]
    image_positions: tuple[int, ...]


class PromptBuilder:
    """Builds the prompts of one bundle; `vocabulary` is the bundle's."""

    def __init__(self, manifest: Manifest, vocabulary: Vocabulary, template: str) -> None:
        """Raises BundleError if template or vocabulary do not fit the family or the manifest."""
        family = manifest.family
        missing = [marker for marker in family.markers if marker not in vocabulary.added]
        if missing:
            raise BundleError(f"the tokenizer of {manifest.name} has no {missing[0]} as a token of its own")
        if vocabulary.added[token := family.image_token or family.image_marker] != manifest.image_token:
            raise BundleError(f"image_token_id {manifest.image_token} of {manifest.name} is not {token}")
        if ordinary := set(manifest.stop_tokens) - set(vocabulary.added.values()):
            raise BundleError(f"eos_token_id {min(ordinary)} of {manifest.name} is no special token of its tokenizer")
        self._manifest = manifest
        self.vocabulary = vocabulary
        # Blocks are trimmed as in transformers, so that a template renders to the same text.
        self._environment = Environment(trim_blocks=True, lstrip_blocks=True, fuel=MAX_STEPS, debug=False)
        self._environment.add_filter("tojson", _json)  # as transformers': the one here escapes what is safe in no page
        try:
            self._environment.add_template("chat", template)
        except TemplateError as error:
            raise BundleError(f"the chat template of {manifest.name} does not parse ({error.kind})") from None

    @classmethod
    def open(cls, bundle: Bundle) -> PromptBuilder:
        """The builder of a bundle, from its tokenizer and chat template. Raises BundleError."""
        return cls.read(bundle.manifest, Vocabulary.open(bundle), bundle.file(TEMPLATE).read_bytes())

    @classmethod
    def read(cls, manifest: Manifest, vocabulary: Vocabulary, template: bytes) -> PromptBuilder:
        """The builder of the model in `manifest`, with the content of its chat template file. Raises BundleError."""
        if len(template) > MAX_TEMPLATE:
            raise BundleError(f"the chat template of {manifest.name} is over {MAX_TEMPLATE >> 10} KiB")
        try:
            text = template.decode()
        except UnicodeDecodeError:
            raise BundleError(f"the chat template of {manifest.name} is not UTF-8 text") from None
        return cls(manifest, vocabulary, text)

    def build(
        self, messages: Sequence[Message], grids: Sequence[tuple[int, int]], tools: Sequence[Tool] = ()
    ) -> Prompt:
        """The prompt for the next answer; `grids` holds (rows, cols) of each image, as `Pixels.grid`.

        Of videos there are image parts for what is looked at of them, and what is said about that. The model is told of
        `tools` that it may call.

        Raises InputError where it has no words for tools; PromptError for an empty question, a number of images other
        than that of the image parts, an impossible grid, or a prompt that leaves no room for an answer in the model's
        context.
        """
        self._check(messages, grids)
        if tools or any(message.calls or message.role == "tool" for message in messages):
            self.check_tools()
        family = self._manifest.family
        pieces = self._render(messages, tools).split(family.image_marker)
        expanded = list[str]()
        for part, grid in zip(_images(messages), grids, strict=True):
            if part.joined:
                expanded[-1] += family.expand(grid, len(expanded) - 1)
            else:
                expanded.append(family.expand(grid, len(expanded)))
        if len(pieces) != len(expanded) + 1:
            raise BundleError(f"the chat template of {self._manifest.name} does not place every image once")
        ids = self.vocabulary.encode(pieces[0] + "".join(a + b for a, b in zip(expanded, pieces[1:], strict=True)))
        context = self._manifest.decoder.context
        if len(ids) >= context:
            raise PromptError(
                f"the prompt takes {len(ids)} tokens, but the model holds {context} and needs one for its answer; "
                "ask a shorter question"
            )
        positions = tuple(position for position, token in enumerate(ids) if token == self._manifest.image_token)
        return Prompt(ids, positions)

    def _check(self, messages: Sequence[Message], grids: Sequence[tuple[int, int]]) -> None:
        family, last = self._manifest.family, messages[-1] if messages else None
        silent = last is not None and last.role == "user" and not last.text.strip()
        if last is None or last.role not in ("user", "tool") or (silent and (family.needs_question or not grids)):
            raise PromptError("the question is empty; ask something about the image")
        if len(messages) > 1 and not family.has_turns:
            raise PromptError(f"{self._manifest.name} takes one question, and neither turns nor instructions before it")
        if family.most_images is not None and len(grids) > family.most_images:
            most = f"{family.most_images} image" + "s" * (family.most_images != 1)
            raise PromptError(f"{self._manifest.name} takes {most} in a question, and {len(grids)} came")
        size = sum(len(message.text) + sum(len(call.arguments) for call in message.calls) for message in messages)
        if size > MAX_TEXT:
            raise PromptError(f"the messages have {size} characters, over {MAX_TEXT}; ask a shorter question")
        assert not any(isinstance(part, VideoPart) for part in every_part(messages))
        places = len(_images(messages))
        if places != len(grids):
            raise PromptError(f"the messages have places for {places} images, but {len(grids)} came with them")
        for grid in grids:
            if not self._manifest.family.takes(grid):
                raise PromptError(f"an image cannot become {grid[0]} by {grid[1]} of this model's tiles or patches")

    def check_tools(self) -> None:
        """Raises InputError where the model cannot be told of tools."""
        if not self.takes_tools:
            raise InputError(f"{self._manifest.name} calls no tools: its template, or its family here, has none")

    @functools.cached_property
    def takes_tools(self) -> bool:
        """Whether the model may be told of tools: its family has words for calls, its tokenizer and template too."""
        syntax, added = self._manifest.family.tools, self.vocabulary.added
        if syntax is None or not {syntax.begin, syntax.end} <= added.keys():
            return False
        if not all(self.vocabulary.decode([added[mark]]) for mark in (syntax.begin, syntax.end)):
            return False  # they would not be seen in an answer
        name = "a_tool_that_is_looked_for"
        try:
            return name in self._render((Message("user", (TextPart("?"),)),), (Tool(name=name),))
        except CutlineError:
            return False

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        more: dict[str, Any] = {"tools": [self._guarded(tool.told) for tool in tools]} if tools else {}
        try:
            rendered = self._environment.render_template(
                "chat", messages=[self._turn(message) for message in messages], add_generation_prompt=True, **more
            )
        except TemplateError as error:
            parts = sum(len(message.parts) for message in messages)
            if error.kind == "OutOfFuel" and parts > FEW_PARTS:  # with fewer the template is at fault
                raise PromptError(f"{len(messages)} messages are too many; start a new conversation") from None
            raise BundleError(f"the chat template of {self._manifest.name} does not render ({error.kind})") from None
        if len(rendered) > MAX_RENDERED:
            raise PromptError(f"the messages render to over {MAX_RENDERED} characters; ask a shorter question")
        return rendered

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as templates have it; what a tool gave, and what is said beside a call, as plain text."""
        if message.role == "tool" or message.calls:
            turn: dict[str, Any] = {"role": message.role, "content": self.vocabulary.guard(message.text)}
            return turn | (
                {"tool_calls": [self._guarded(call.told) for call in message.calls]} if message.calls else {}
            )
        shown = (part for part in message.parts if not (isinstance(part, ImagePart) and part.joined))
        return {"role": message.role, "content": [self._content(part) for part in shown]}

    def _guarded(self, value: Any) -> Any:
        """What a client says of tools, of which no text becomes a special token."""
        match value:
            case str():
                return self.vocabulary.guard(value)
            case dict():
                return {self.vocabulary.guard(name): self._guarded(one) for name, one in value.items()}
            case list():
                return [self._guarded(one) for one in value]
            case _:
                return value

    def _content(self, part: Part) -> dict[str, str]:
        if not isinstance(part, TextPart):
            return {"type": "image"}
        return {"type": "text", "text": self.vocabulary.guard(part.text)}


def _images(messages: Sequence[Message]) -> list[ImagePart]:
    return [part for part in every_part(messages) if isinstance(part, ImagePart)]


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
