"""A question as the models take it, an answer in the making, and what the agent believes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from cutline.core.request import Request
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.events import Event, Guessed, Settled
from cutline.edge.generation.result import Gated, Provenance, Token
from cutline.edge.generation.timing import Stopwatch
from cutline.errors import WorkerFailed
from cutline.models.images import Pixels
from cutline.models.sampling import agreeing
from cutline.protos.messages import Confirmed, Likelihood, Opened


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question as the models take it, with its images in order.

    `images` are as small as they may be for the same pixels; an image that has one of `files` is a preview, and that is
    what goes to a worker. `reduced` of them are JPEGs that were decoded at half their size. `asked` is the target's
    prompt: `prompt`, with fewer image tokens where they are merged. Of a `fresh` one nothing is kept for later
    questions.
    """

    question: Request
    images: tuple[Image.Image, ...]
    pixels: tuple[Pixels, ...]
    prompt: tuple[int, ...]
    asked: tuple[int, ...]
    limit: int  # answer tokens at most
    names: tuple[bytes, ...] | None = None  # hashes of the images' files and whose they are
    fresh: bool = False
    files: tuple[bytes | None, ...] = ()
    reduced: int = 0

    @property
    def kept(self) -> tuple[bytes, ...] | None:
        """The names under which something of the images is kept, None where nothing is."""
        return None if self.fresh else self.names

    def is_complete(self, answer: Sequence[int], stop_tokens: Collection[int]) -> bool:
        """Whether nothing follows the tokens of `answer`."""
        return len(answer) >= self.limit or (bool(answer) and answer[-1] in stop_tokens)


@dataclass(slots=True)
class Generation:
    """An answer in the making. `tokens` are settled: the target's own, or in mode `edge` the drafter's.

    `transcript` has them as text, and ends the answer where the question says so; `tell` hears of them, in whatever
    thread settles them.
    """

    began: float
    transcript: Transcript
    tell: Callable[[Event], object] = lambda event: None
    tokens: list[int] = field(default_factory=list)
    sources: list[Provenance] = field(default_factory=list)
    likelihoods: list[Likelihood | None] = field(default_factory=list)  # None where they are not known
    first: float | None = None  # when the first token was settled ...
    last: float | None = None  # ... and the last one
    drafted: int = 0
    rounds: int = 0
    confidence: float | None = None
    gate: Gated | None = None  # what the gate says of it so far
    drafts: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # (where one begins, the answer with it)
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
        progress = Generation(self.began, self.transcript.empty())
        progress.settle(self.tokens[:count], self.sources[:count], self.likelihoods[:count])
        return progress

    def take(self, other: Generation) -> None:
        """Go over to the tokens of another one that was made `anew` from this, and its session; add what it cost."""
        self.tokens, self.sources, self.likelihoods = other.tokens, other.sources, other.likelihoods
        self.transcript = other.transcript
        self.sent, self.opened, self.reused_images = other.sent, other.opened, other.reused_images
        self.drafted += other.drafted
        self.rounds += other.rounds

    def record(self) -> tuple[int, int]:
        """How many drafted tokens were right, of how many that are known to be right or wrong.

        The first word on each place of the answer counts; what is drafted behind a wrong token says nothing.
        """
        outcomes: dict[int, bool] = {}
        for start, tokens in self.drafts:
            right = agreeing(tokens, self.tokens)
            for index in range(start, min(right + 1, len(tokens), len(self.tokens))):
                outcomes.setdefault(index, index < right)
        return sum(outcomes.values()), len(outcomes)

    def confirm(self, confirmed: Confirmed, prepared: Prepared, vocabulary: int) -> None:
        """Take what the worker confirmed; what is settled already is passed over. Raises WorkerFailed."""
        known = len(self.tokens) - (confirmed.position - len(prepared.asked))
        if known < 0:
            raise WorkerFailed(f"the worker skipped {-known} tokens")
        if len(self.tokens) - known + len(confirmed.tokens) > prepared.limit:
            raise WorkerFailed(f"the worker confirmed more than the {prepared.limit} tokens it was asked for")
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
