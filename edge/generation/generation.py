"""A request as the models take it and how it is carried out, an answer in the making, and what is believed of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.events import Event, Guessed, Settled
from cutline.edge.generation.result import DraftedBy, Ending, Gated, Provenance, Token
from cutline.edge.generation.timing import Stopwatch
from cutline.edge.video.views import VideoShown
from cutline.errors import WorkerFailed
from cutline.models.bundle import Manifest
from cutline.models.images import Pixels, times_of
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Likelihood, Opened

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as the models take it, with its images in order: pictures, and pieces of videos.

    `images` are as small as they may be for the same pixels; an image that has one of `files` is a preview, and that is
    what goes to a worker. A piece of a video has none of `sources`, which are the request's images as they were given;
    `video` tells how those are looked at. `reduced` of them are JPEGs that were decoded at half their size. `asked` is
    the target's prompt: `prompt`, with fewer image tokens where they are merged. Of a `fresh` one nothing is kept for
    later questions. `compiled` is the constraint that the answer keeps to.
    """

    request: Request
    images: tuple[Image.Image, ...]
    pixels: tuple[Pixels, ...]
    prompt: tuple[int, ...]
    asked: tuple[int, ...]
    limit: int  # answer tokens at most, by the request and the contexts of the models here
    names: tuple[bytes, ...] | None = None  # hashes of the images' files and whose they are
    fresh: bool = False
    files: tuple[bytes | None, ...] = ()
    sources: tuple[bytes | None, ...] | None = None  # without any, the request's images in their order
    video: VideoShown | None = None
    reduced: int = 0
    compiled: CompiledConstraint | None = None

    @property
    def pieces(self) -> tuple[int, ...]:
        """Which of the images are pieces of videos."""
        return tuple(index for index, source in enumerate(self.sources or ()) if source is None)

    @property
    def times(self) -> tuple[int, ...]:
        """At which time each of the images stands; none where no video has any."""
        return times_of(self.pixels)

    @property
    def kept(self) -> tuple[bytes, ...] | None:
        """The names under which something of the images is kept, None where nothing is."""
        return None if self.fresh else self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a request is carried out, as it says itself or as it was planned: mode, cut, and a boundary's format.

    A `bounded` one was to be planned by a request's bounds and could not be: nothing of it may go to a worker.
    """

    mode: Mode
    cut: str = "image"
    wire: Wire = Wire.FLOAT32
    bounded: bool = False

    @classmethod
    def unplanned(cls, request: Request) -> Execution:
        """As the request says."""
        return cls(mode=request.mode, cut=request.cut, wire=request.wire, bounded=request.bounded)

    def is_exact(self, request: Request, target: Manifest | None) -> bool:
        """Whether a worker's answer is the target's own, to the bit of a token; layers before a cut are of `target`."""
        changed = request.keep_image_tokens < 1.0 or request.noise > 0.0
        return self.cut == "image" or (target is not None and target.is_exact_at(self.cut, self.wire) and not changed)


@dataclass(frozen=True, slots=True)
class SentDraft:
    """A draft that a worker was sent: the answer's `tokens` with it, of which it begins at `start`."""

    start: int
    tokens: tuple[int, ...]
    by: DraftedBy


@dataclass(slots=True)
class Generation:
    """An answer in the making. `tokens` are settled: the target's own, or in mode `edge` the drafter's.

    `transcript` has them as text, and ends the answer where the request says so; one of the `stop_tokens` ends it, too,
    and there are at most `limit` tokens: fewer than were asked for where the context of who appends them holds no more.
    `tell` hears of them, in whatever thread settles them. Only backends append to it. A worker is asked for likelihoods
    and so many `alternatives`, unless that is None.
    """

    began: float
    transcript: Transcript
    tell: Callable[[Event], object] = lambda event: None
    stop_tokens: Collection[int] = ()
    limit: int = sys.maxsize
    alternatives: int | None = None
    cut_short: Ending | None = None  # before any limit, where something did
    tokens: list[int] = field(default_factory=list)
    sources: list[Provenance] = field(default_factory=list)
    likelihoods: list[Likelihood | None] = field(default_factory=list)  # None where they are not known
    first: float | None = None  # when the first token was settled ...
    last: float | None = None  # ... and the last one
    drafted: int = 0
    rounds: int = 0
    confidence: float | None = None
    gate: Gated | None = None  # what the gate says of it so far
    drafts: list[SentDraft] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)  # (when, bytes) of what opens a session or asks
    connecting: float | None = None  # seconds that a connection to an upstream took, if one was made
    parts: Stopwatch = field(default_factory=Stopwatch)
    cold: bool = False  # graphs were loaded or the worker connected to while this was asked
    opened: tuple[float, Opened] | None = None  # when the worker had opened it, and what it said
    reused_images: int = 0  # that the worker which opened it kept from before

    @property
    def over(self) -> bool:
        """Whether the answer has ended before one of the words that it was to stop at."""
        return self.transcript.stopped

    @property
    def ended(self) -> bool:
        """Whether the answer has come to its own end, and not to a limit."""
        return self.over or self._ends(self.tokens)

    @property
    def ending(self) -> Ending:
        """What ended it, once it is complete."""
        if self.ended:
            return Ending.STOP
        return self.cut_short or Ending.LENGTH

    @property
    def complete(self) -> bool:
        """Whether nothing is appended any more."""
        return self.over or self.cut_short is not None or self.completed_by(self.tokens)

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Whether nothing would follow if the answer were `tokens`."""
        return len(tokens) >= self.limit or self._ends(tokens)

    def _ends(self, tokens: Sequence[int]) -> bool:
        return bool(tokens) and tokens[-1] in self.stop_tokens

    def settle(
        self, tokens: Sequence[int], sources: Sequence[Provenance], likelihoods: Sequence[Likelihood | None] = ()
    ) -> None:
        """Take tokens that follow those settled before."""
        if tokens:
            self.last = time.perf_counter()
            self.first = self.first or self.last
        likelihoods = (*likelihoods, *[None] * (len(tokens) - len(likelihoods)))
        self.tokens += tokens
        self.sources += sources
        self.likelihoods += likelihoods
        position = len(self.transcript.tokens)
        settled: list[Token] = []
        for token, source, likelihood in zip(tokens, sources, likelihoods, strict=True):
            settled += self.transcript.add(token, source, likelihood)
        if settled:
            self.tell(Settled(position, tuple(settled)))

    def guess(self, tokens: Sequence[int]) -> None:
        """Tell that the answer is believed to be `tokens`, of which it is told what follows those that were told."""
        self.tell(Guessed(*self.transcript.guess(tokens)))

    def finish(self) -> None:
        """The answer is over: settle what was held back as the possible beginning of a word to stop at."""
        if held := self.transcript.finish():
            self.tell(Settled(len(self.transcript.tokens) - len(held), held))

    def anew(self, count: int) -> Generation:
        """One that has the first `count` tokens of this one, tells nobody of more, and keeps its time to itself."""
        other = Generation(self.began, self.transcript.empty(), stop_tokens=self.stop_tokens, limit=self.limit)
        other.alternatives = self.alternatives
        other.settle(self.tokens[:count], self.sources[:count], self.likelihoods[:count])
        return other

    def take(self, other: Generation) -> None:
        """Go over to the tokens of another one that was made `anew` from this, and its session; add what it cost."""
        self.tokens, self.sources, self.likelihoods = other.tokens, other.sources, other.likelihoods
        self.transcript, self.limit, self.cut_short = other.transcript, other.limit, other.cut_short
        self.sent, self.opened, self.reused_images = other.sent, other.opened, other.reused_images
        self.drafted += other.drafted
        self.rounds += other.rounds

    def record(self, by: DraftedBy) -> tuple[int, int]:
        """How many tokens that one drafted were right, of how many that are known to be right or wrong.

        The first word on each place of the answer counts; what is drafted behind a wrong token says nothing.
        """
        outcomes: dict[int, bool] = {}
        for draft in self.drafts:
            if draft.by is not by:
                continue
            right = agreeing(draft.tokens, self.tokens)
            for index in range(draft.start, min(right + 1, len(draft.tokens), len(self.tokens))):
                outcomes.setdefault(index, index < right)
        return sum(outcomes.values()), len(outcomes)

    def confirm(self, confirmed: Confirmed, *, start: int, vocabulary: int) -> None:
        """Take what the worker confirmed; what is settled already is passed over. Raises WorkerFailed.

        `start` is the position of the answer's first token, `vocabulary` the number of tokens that there are.
        """
        known = len(self.tokens) - (confirmed.position - start)
        if known < 0:
            raise WorkerFailed(f"the worker skipped {-known} tokens")
        if len(self.tokens) - known + len(confirmed.tokens) > self.limit:
            raise WorkerFailed(f"the worker confirmed more than the {self.limit} tokens it was asked for")
        if max(confirmed.tokens, default=0) >= vocabulary:
            raise WorkerFailed(f"the worker confirmed a token outside the vocabulary of {vocabulary}")
        sources = [
            Provenance.DRAFT if i < confirmed.accepted else Provenance.CLOUD for i in range(len(confirmed.tokens))
        ]
        self.settle(confirmed.tokens[known:], sources[known:], confirmed.likelihoods[known:])


@dataclass(frozen=True, slots=True)
class Belief:
    """The answer as the agent believes it: `tokens`, the first `sent` of them with the worker.

    `replying` says that a reply of the worker changed it, and that nothing was sent since.
    """

    tokens: tuple[int, ...] = ()
    sent: int = 0
    replying: bool = False

    def after(self, settled: Sequence[int]) -> Belief:
        """The belief once the tokens `settled` are known; itself if it says the same and maybe more."""
        agree = agreeing(self.tokens, settled)
        return self if agree == len(settled) else Belief(tuple(settled), min(self.sent, agree), replying=True)

    def grown(self, draft: Sequence[int]) -> Belief:
        """The belief with a draft, once all of it is sent."""
        tokens = (*self.tokens, *draft)
        return replace(self, tokens=tokens, sent=len(tokens), replying=False)
