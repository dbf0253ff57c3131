"""The models of this device, and what they do for one request."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cutline.core.request import Mode, Request
from cutline.devices.profile import CPU
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.recent_answers import RecentAnswers
from cutline.edge.generation.result import DraftedBy
from cutline.edge.inference.boundary_noise import Noise, new_secret
from cutline.edge.inference.drafter import Drafted, Drafter, DrafterModel, DraftSource, OpenDrafter
from cutline.edge.inference.target_prefix import Crossing, LoadedSpans
from cutline.edge.offload.backends.own_questions import CannotDraft, OwnQuestions
from cutline.edge.offload.backends.proposals import RecentDrafts
from cutline.errors import InputError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.law.sampling import agreeing
from cutline.models.pairs.pair import ServedModel

Returned = TypeVar("Returned")


class DeviceModels:
    """A `drafter`'s bundle, loaded, and where there is a `target` its first layers, loaded up to each cut when used.

    There may be no drafter. What is asked is prepared for the model that is `served`; a drafter unlike it prepares that
    for itself, and keeps nothing of it where every question is to be `fresh`.
    """

    def __init__(
        self,
        drafter: Bundle | None,
        target: Bundle | None,
        served: ServedModel,
        *,
        threads: int,
        provider: str = CPU,
        fresh: bool = False,
        open_drafter: OpenDrafter = Drafter.open,
    ) -> None:
        self.target: Manifest | None = None if target is None else target.manifest
        self._spans = None if target is None else LoadedSpans(target, threads=threads, provider=provider)
        self._drafter: DrafterModel | None = None
        self._own: OwnQuestions | None = None
        self._served = served
        self._open = partial(open_drafter, threads=threads, provider=provider)
        self._tenants: frozenset[str] | None = None  # that the drafter serves, None for all
        if drafter is not None:
            self._use(drafter)
            self._own = None if served.shared.prompt else OwnQuestions(drafter, served, fresh=fresh)
        self._recent = None if fresh else RecentAnswers()
        self._secret = new_secret()

    def with_drafter(self, drafter: Bundle) -> DeviceModels:
        """The same with another drafter, which is alike and loaded here. Raises BundleError, InputError."""
        other = copy.copy(self)
        other._use(drafter)
        return other

    def _use(self, drafter: Bundle) -> None:
        self._drafter = self._open(drafter)
        origin = drafter.manifest.origin
        learnt = None if origin is None else origin.learnt
        self._tenants = None if learnt is None else frozenset(learnt.tenants)

    @property
    def ready(self) -> frozenset[str]:
        """The cuts whose graphs are loaded."""
        return frozenset() if self._spans is None else self._spans.cuts

    def work(self, prepared: Prepared, execution: Execution) -> DeviceWork:
        """What they do for a request that is carried out so. Nothing is begun yet.

        Raises InputError where an answer of the drafter would need likelihoods of the target's tokens, and it has none.
        """
        request = prepared.request
        if not self._served.shared.tokens:
            self._check_likelihoods(request, execution.mode)
        recent = None
        if self._recent is not None and request.store and execution.mode in (Mode.DRAFT, Mode.AUTO):
            recent = RecentDrafts(self._recent, request.tenant, hash(prepared.prompt))
        return DeviceWork(
            partial(self._cross, prepared, execution), partial(self._converse, prepared, execution), recent=recent
        )

    def _check_likelihoods(self, request: Request, mode: Mode) -> None:
        """Raises InputError for what a drafter of other tokens cannot do for a request that it may answer alone."""
        name = self._served.manifest.name
        if request.logprobs is not None and mode in (Mode.EDGE, Mode.AUTO):
            raise InputError(
                f"{name} has other tokens than its target, and no likelihoods of those; ask without logprobs, or in "
                "mode cloud or draft"
            )
        if request.sampling.logit_bias and mode is Mode.EDGE:
            raise InputError(
                f"{name} has other tokens than its target, which a logit-bias names; ask without, or in another mode "
                "than edge"
            )

    def learn(self, prepared: Prepared, generation: Generation) -> None:
        """Keep the target's own answer to a request, to draft from it later."""
        if self._recent is not None and prepared.request.store:
            right, known = generation.record(DraftedBy.RECENT)
            share = right / known if known else None
            self._recent.keep(prepared.request.tenant, hash(prepared.prompt), generation.tokens, right=share)

    def _cross(self, prepared: Prepared, execution: Execution) -> Crossing | None:
        """What crosses the cut, or None for the image. Raises InputError, BundleError."""
        request = prepared.request
        if execution.cut == "image" or self._spans is None:
            return None
        return self._spans.open(execution.cut).converse(
            prepared.prompt,
            prepared.pixels,
            names=prepared.names,
            fresh=prepared.fresh,
            keep=request.keep_image_tokens,
            noise=Noise.at(execution.cut, request.noise, self._secret) if request.noise else None,
            tenant=request.tenant,
        )

    def _converse(self, prepared: Prepared, execution: Execution) -> DraftSource:
        """What drafts the answer. Raises CannotDraft for a question that only the target takes."""
        own, request, tokens = prepared, prepared.request, self._served.shared.tokens
        if self._drafter is None:
            raise CannotDraft("this agent has no drafter, and answers with a worker alone; give another mode than edge")
        if self._tenants is not None and request.tenant not in self._tenants:
            raise CannotDraft("the drafter learnt from others' answers and serves them alone; ask in mode cloud")
        if self._own is not None:
            own = self._own.prepare(request, likely=execution.mode is Mode.DRAFT)
        drafting = self._drafter.converse(
            own.prompt,
            own.pixels,
            own.request.sampling,
            names=own.kept,
            start=len(prepared.asked) if tokens else None,
            alternatives=request.logprobs if tokens else None,
            compiled=own.compiled,
            tenant=request.tenant,
        )
        return drafting if self._own is None else self._own.retokenized(drafting)


@dataclass(slots=True, eq=False)
class DeviceWork:
    """What models of this device do for one request, one thread at a time, whatever became of who wanted it.

    `cross` gives what computes what crosses the cut, `converse` what drafts: the `crossing`, where something other than
    the image crosses, and the `drafting` once they are begun. The answer is `believed` to be these tokens, as far as
    the drafter got; what it drafted last for each place is in `drafted`. A worker may be sent what is `recent`.
    """

    cross: Callable[[], Crossing | None]
    converse: Callable[[], DraftSource]
    crossing: Crossing | None = None
    drafting: DraftSource | None = None
    recent: RecentDrafts | None = None
    believed: tuple[int, ...] = ()
    drafted: dict[int, Drafted] = field(default_factory=dict)
    _crossed: bool = False
    _over: threading.Event = field(default_factory=threading.Event)  # nobody waits for it any more
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def proposes(self) -> bool:
        """Whether there may be drafts for a worker."""
        return self.drafting is not None or self.recent is not None

    async def run(self, work: Callable[..., Returned], *given: object) -> Returned:
        """Have `work` done in a thread, when all that was begun before has ended."""
        return await asyncio.to_thread(self._in_turn, work, *given)

    @contextlib.asynccontextmanager
    async def until_ended(self) -> AsyncIterator[None]:
        """Where this is cancelled, drafting stops at the next token, and has stopped when this is left.

        What was begun ends here, so that the next request finds it. A thread may hold on to its work for longer.
        """
        try:
            yield
        except asyncio.CancelledError:
            self._over.set()
            await self.run(_nothing)
            raise
        finally:
            self.crossing = self.drafting = None

    def begin_crossing(self) -> None:
        """Begin to compute what crosses the cut; in a thread. Raises InputError, BundleError."""
        if not self._crossed:
            self.crossing, self._crossed = self.cross(), True

    def begin_drafting(self) -> None:
        """Begin to draft, where that is not begun. Raises CannotDraft."""
        if self.drafting is None:
            self.drafting = self.converse()

    def pooled(self) -> list[NDArray[np.float32]]:
        """The drafter's rows of each image, averaged to one (width,), once drafting is begun."""
        return [] if self.drafting is None else self.drafting.pooled()

    def rest(self, answer: Sequence[int]) -> tuple[int, ...]:
        """What is believed to follow `answer`."""
        return self.believed[len(answer) :] if agreeing(self.believed, answer) == len(answer) else ()

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[int]:
        """Tokens that may follow `answer`, as `DrafterConversation.draft` gives them; none where none is begun."""
        if (drafting := self.drafting) is not None and not self._over.is_set():
            for place, one in enumerate(islice(drafting.draft(answer, limit), limit), start=len(answer)):
                self.drafted[place] = one
                yield one.token
                if self._over.is_set():
                    return

    def _in_turn(self, work: Callable[..., Returned], *given: object) -> Returned:
        with self._turn:
            return work(*given)


def _nothing() -> None:
    """What is done when its turn has come."""
