"""A worker as a backend: what it serves, what of a request it has room for, and one session with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import DraftedBy
from cutline.edge.offload.backends.backend import NoRoom
from cutline.edge.offload.backends.device_models import DeviceWork
from cutline.edge.offload.backends.own_questions import CannotDraft
from cutline.edge.offload.backends.upload_cache import Uploads
from cutline.edge.offload.backends.worker_session import Exchange
from cutline.edge.offload.heartbeat import FIRST_UPLINK, NOTICE, WorkerSilent, patience
from cutline.edge.offload.worker_pool import Workers
from cutline.errors import BundleError, WorkerError, WorkerForgot
from cutline.models.bundle import Manifest
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import Description

LEAST_SECONDS = 0.05  # that a worker has, however near the deadline is


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContact:
    """How an agent asks its `workers`: for the model that is `served`, and what each keeps of `uploads`.

    One of which nothing is heard for `notice` seconds is given up.
    """

    served: Manifest
    workers: Workers
    uploads: Uploads = field(default_factory=Uploads)
    notice: float = NOTICE

    @property
    def model(self) -> str:
        """The identity of the target, empty where there is none."""
        return self.served.target or ""

    def check(self) -> None:
        """Raises BundleError for a drafter that was made for no target."""
        if self.served.target is None:
            raise BundleError(f"{self.served.name} was exported without a target, so no worker can verify it")


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerBackend:
    """One worker that was chosen, for one request; it says to the pool of workers what came of it.

    It has so many `seconds`. The drafter drafts for it where it `drafts`; it is given up for silence alone only where
    there are `others`, see `StallDetector`.
    """

    client: WorkerClient
    contact: WorkerContact
    prepared: Prepared
    execution: Execution
    work: DeviceWork
    exact: bool
    drafts: bool
    seconds: float
    others: Callable[[], bool]
    session: WorkerSession | None = None

    @property
    def address(self) -> str:
        """The worker's."""
        return self.client.address

    async def extend(self, generation: Generation) -> None:
        """Have the worker answer the rest. Raises InputError, NoRoom, WorkerError."""
        workers, limit, end = self.contact.workers, generation.limit, time.monotonic() + self.seconds
        exchange: Exchange | None = None
        try:
            generation.cold |= not self.client.connected
            described = await self._describe()
            # Where the worker's context ends, so does the answer, if the worker gives it.
            generation.limit = min(limit, self._room(described, generation))
            await self.work.run(self.work.begin_crossing)
            if self.drafts:
                with suppress(CannotDraft):  # the worker answers without, and the answer says that nothing was drafted
                    await self.work.run(self.work.begin_drafting)
            exchange = self._exchange(generation, described)
            left = max(end - time.monotonic(), LEAST_SECONDS)
            await exchange.run(self.client, self.contact.model, *self._opening_draft(generation), seconds=left)
        except BaseException as error:
            generation.limit = limit
            if (exchange is None or exchange.session is None) and not isinstance(error, WorkerError):
                workers.drop(self.address)  # the fault is here
            else:
                workers.report(self.address, error)
            if isinstance(error, WorkerForgot):
                self.contact.uploads.forget(self.address)
            raise
        else:
            workers.report(self.address, None)
        finally:
            if exchange is not None:
                self._note(exchange)

    def _opening_draft(self, generation: Generation) -> tuple[tuple[int, ...], DraftedBy]:
        """What the session opens with: what is believed already, or a whole answer of late to the same question."""
        if (rest := self.work.rest(generation.tokens)) or generation.tokens or self.work.recent is None:
            return rest, DraftedBy.DRAFTER
        return self.work.recent.whole()[: generation.limit], DraftedBy.RECENT

    async def _describe(self) -> Description:
        """What the worker serves, before anything goes up. Raises WorkerError, also where it takes too long to say."""
        notice = self.contact.notice
        wait = patience(notice, ahead=0, uplink=FIRST_UPLINK, connected=self.client.connected)
        wait = min(wait, max(self.seconds, LEAST_SECONDS))
        try:
            async with asyncio.timeout(wait):
                return await self.contact.workers.describe(self.client, model=self.contact.model)
        except TimeoutError:
            raise WorkerSilent(
                f"nothing was heard of the worker at {self.address} for {wait:.1f} seconds; is it running, and the "
                "link up?",
                notice=notice,
                answered=False,
            ) from None

    def _room(self, described: Description, generation: Generation) -> int:
        """Tokens of an answer that the worker's context has room for. Raises NoRoom where it has none for another."""
        asked, settled = len(self.prepared.asked), len(generation.tokens)
        if (room := described.context - asked) <= settled:
            raise NoRoom(
                f"{asked + settled} tokens leave no room in the context of {described.context} that the worker at "
                f"{self.address} has; ask something shorter, or start it with a larger --context"
            )
        return room

    def _exchange(self, generation: Generation, described: Description) -> Exchange:
        return Exchange(
            self.contact.served,
            self.prepared,
            self.execution,
            generation,
            self.work,
            self.contact.uploads,
            notice=self.contact.notice,
            uplink=self.contact.workers.uplink(self.address),
            others=self.others,
            features=described.features,
        )

    def _note(self, exchange: Exchange) -> None:
        """Take note of what an exchange left."""
        self.work.believed = exchange.belief.tokens
        workers, self.session = self.contact.workers, exchange.session
        workers.measured(self.address, uplink=exchange.measured, rtt=exchange.trip, queue=exchange.queue)
        if self.session is not None:
            workers.carried(self.address, self.session.carried)
