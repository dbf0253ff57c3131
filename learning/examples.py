"""What a drafter learns from: entries of a journal that are of its target, and questions that it must not forget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cutline.core.escalations.escalation import Escalation, Likeliest
from cutline.core.escalations.folder import entries_in
from cutline.core.request import Request
from cutline.core.sampling import GREEDY
from cutline.core.storage.envelope import SealingKey
from cutline.edge.inference.drafter import Drafter
from cutline.errors import ImageError, InputError, PromptError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.images import Pixels, decode_image, read_header
from cutline.models.prompt import PromptBuilder

HELD_OUT = 5  # of so many pictures one is learnt nothing of
MAX_ANSWER = 64  # tokens of an answer to a question that is not to be forgotten


@dataclass(frozen=True, slots=True)
class Example:
    """A question, as the tokens `prompt` about `images` (contents of files), and the tokens that answer it.

    `likely` has the likeliest tokens in each place of the answer; none where only the answer is to be learnt.
    """

    prompt: tuple[int, ...]
    images: tuple[bytes, ...]
    answer: tuple[int, ...]
    likely: tuple[Likeliest, ...] = ()
    plain: bool = True  # the answer is the target's likeliest

    @property
    def held_out(self) -> bool:
        """Whether it is kept to compare with: the questions about a picture all are, or none is."""
        about = b"".join(self.images) or repr(self.prompt).encode()
        return int.from_bytes(hashlib.sha256(about).digest()[:4]) % HELD_OUT == 0


@dataclass(slots=True)
class JournalExamples:
    """The `examples` that a journal has for a drafter, and the `tenants` that they are of.

    Passed over were `torn` entries, those of `others` than its target, and those that do not fit `into` the drafter:
    whose pictures were made smaller, or whose tokens it does not have.
    """

    examples: list[Example] = field(default_factory=list)
    tenants: set[str] = field(default_factory=set)
    torn: int = 0
    others: int = 0
    unfit: int = 0

    @property
    def learnt(self) -> list[Example]:
        """Those that are learnt from."""
        return [one for one in self.examples if not one.held_out]

    @property
    def held_out(self) -> list[Example]:
        """Those that are compared with: greedy answers alone say what a drafter should have said."""
        return [one for one in self.examples if one.held_out and one.plain]


def read_examples(
    journal: Path, key: SealingKey | None, drafter: Manifest, *, tenant: str | None = None, until: float | None = None
) -> JournalExamples:
    """What a `drafter` can learn from a journal: of all tenants, or of one; `until` a time, in seconds since 1970.

    Raises InputError for a journal without anything of its target, that is sealed by another key, or that is none.
    """
    found = JournalExamples()
    for entry in entries_in(journal, key, tenant):
        if entry is None:
            found.torn += 1
        elif until is not None and entry.time > until:
            break
        elif entry.target != drafter.target:
            found.others += 1
        elif not _fits(entry, drafter):
            found.unfit += 1
        else:
            likely = entry.likely if entry.plain else ()
            found.examples.append(Example(entry.prompt, entry.images, entry.tokens, likely, entry.plain))
            found.tenants.add(entry.tenant)
    if not found.examples:
        raise InputError(_why_empty(journal, found, drafter))
    return found


def pixels_of(example: Example, drafter: Manifest) -> list[Pixels]:
    """The pictures of an example as the model takes them. Raises ImageError."""
    return [drafter.family.preprocess(decode_image(image)) for image in example.images]


@dataclass(frozen=True, slots=True)
class Remembered:
    """A question that is not to be forgotten, and the `answer` to it; None for what the drafter says itself."""

    request: Request
    answer: str | None = None


def memory_of(drafter: Bundle, questions: Iterable[Remembered], *, threads: int) -> Iterator[Example]:
    """Questions that a drafter is to answer as before. Raises InputError for what cannot be asked."""
    model, prompts, manifest = Drafter.open(drafter, threads=threads), PromptBuilder.open(drafter), drafter.manifest
    for one in questions:
        images = one.request.images
        pixels = [manifest.family.preprocess(decode_image(image)) for image in images]
        prompt = prompts.build(one.request.messages, [each.grid for each in pixels]).ids
        room = min(MAX_ANSWER, manifest.decoder.context - len(prompt))
        if one.answer is None:
            answer = tuple(drafted.token for drafted in model.converse(prompt, pixels, GREEDY).draft((), room))
        else:
            answer = (*prompts.vocabulary.encode_plain(one.answer), manifest.stop_tokens[0])[:room]
        yield Example(prompt, images, answer)


def _fits(entry: Escalation, drafter: Manifest) -> bool:
    """Whether a drafter reads the very prompt, its pictures being as they are."""
    family, vocabulary = drafter.family, drafter.decoder.vocabulary
    tokens = (*entry.prompt, *entry.tokens)
    named = [token for one in entry.likely for token, _ in one]
    if not entry.tokens or len(tokens) > drafter.decoder.context or not 0 <= min(tokens) <= max(tokens) < vocabulary:
        return False
    if entry.likely and (len(entry.likely) != len(entry.tokens) or not all(0 <= one < vocabulary for one in named)):
        return False
    try:
        sizes = [read_header(image).size for image in entry.images]
        given = sum(family.tokens(family.grid(size)) for size in sizes)
    except (ImageError, PromptError):
        return False
    return entry.prompt.count(drafter.image_token) == given


def _why_empty(journal: Path, found: JournalExamples, drafter: Manifest) -> str:
    if found.others:
        return f"the {found.others} answers in {journal} are of another target than {drafter.name} drafts for"
    if found.torn or found.unfit:
        return (
            f"nothing in {journal} can be learnt: {found.torn} entries are torn, {found.unfit} do not fit the drafter"
        )
    return f"{journal} is empty; `cutline edge --journal {journal}` fills it"
