"""How an agent comes to plan its requests: what it needs to know of workers first, and what their answers teach."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.result import Forecast
from cutline.edge.inference.target_prefix import device_cuts
from cutline.edge.offload.backends.backends import Backends
from cutline.edge.offload.route import Route
from cutline.errors import InputError, WorkerError

if TYPE_CHECKING:  # an agent loads nothing of what it does not do
    from cutline.edge.planning.plan_result import Chosen
    from cutline.edge.planning.planner import Planner

MEETING_SECONDS = 1.0  # that a request waits for the worker to say which layers it has; later ones find it out


class RequestPlanner:
    """Plans requests to the `backends`, with a `planner`; without one it sees that nothing has to be planned.

    Open it and close it.
    """

    def __init__(self, planner: Planner | None, backends: Backends) -> None:
        self._planner = planner
        self._backends = backends
        self._workers = backends.contact.workers
        self.meeting: asyncio.Task[None] | None = None

    @property
    def plans(self) -> bool:
        """Whether there is anything that plans."""
        return self._planner is not None

    def open(self) -> None:
        """Begin to learn of a worker which layers it has."""
        if self._planner is not None and self._backends.upstream is None and not self._workers.offline:
            self.meeting = asyncio.create_task(self._meet(self._planner))

    async def close(self) -> None:
        """Learn no more."""
        if self.meeting is not None:
            self.meeting.cancel()
            await asyncio.wait([self.meeting])

    async def plan(self, prepared: Prepared, generation: Generation) -> Chosen | None:
        """What is planned for a request, if that is left to the agent. Raises InputError."""
        request, planner = prepared.request, self._planner
        if planner is None:
            self._check_unplanned(request)
            return None
        if request.mode not in (Mode.AUTO, Mode.SPLIT) or request.cut != "image":
            return None
        if self.meeting is not None and not self.meeting.done():
            generation.cold = True
            await asyncio.wait([self.meeting], timeout=MEETING_SECONDS)
        if not self._backends.reachable and not request.exact and request.mode is Mode.AUTO:
            return None
        known = functools.partial(self._known, prepared)
        chosen = await asyncio.to_thread(planner.plan, prepared, ready=self._backends.models.ready, known=known)
        generation.parts.lap("plan")
        return chosen

    async def learn(
        self, chosen: Chosen | None, prepared: Prepared, generation: Generation, route: Route
    ) -> Forecast | None:
        """Learn from an answer; gives how right its plan was, if it was planned."""
        if self._planner is None or chosen is None:
            return None
        learn = functools.partial(self._planner.learn, chosen, prepared, generation, route.seconds, whole=route.whole)
        hindsight = await asyncio.to_thread(learn)
        return chosen.forecast(hindsight=hindsight, measured=route.seconds, cold=generation.cold)

    async def _meet(self, planner: Planner) -> None:
        """Connect to a worker, which no plan counts, and learn which layers it has."""
        try:
            if (client := self._workers.choose()) is None:
                return
        except InputError:  # keys that no longer read: a session says it, if one is opened
            return
        try:
            found = await self._workers.describe(client, model=self._backends.contact.model)
        except (WorkerError, InputError) as error:  # likewise
            self._workers.report(client.address, error)
            return
        except asyncio.CancelledError as error:
            self._workers.report(client.address, error)
            raise
        self._workers.report(client.address, None)
        planner.meet(found.start, found.end)

    def _known(self, prepared: Prepared, cut: str, wire: Wire) -> int:
        """How many of a request's images, from the first, some worker keeps as they cross a cut in a format."""
        uploads = self._backends.contact.uploads
        return max((uploads.known(one, prepared, cut, wire) for one in self._workers.addresses), default=0)

    def _check_unplanned(self, request: Request) -> None:
        """Raises InputError for a request that asks for a plan."""
        if request.mode is Mode.SPLIT and request.cut == "image":
            target = self._backends.models.target
            if target is None:
                raise InputError("mode split needs the target's bundle on the device; give --target, or use mode cloud")
            cuts = ", ".join(cut for cut in device_cuts(target) if cut != "image")
            raise InputError(
                f"mode split needs a cut: {target.name} may be cut at {cuts or 'none'}; with "
                "--edge-profile, --cloud-profile and --link the best one is planned"
            )
        if request.bounded:
            raise InputError(
                "this agent does not plan, so nothing keeps to exact, image-must-stay, max-latency-ms, "
                "min-agreement or max-leak; start it with --edge-profile, --link and, for a worker, --cloud-profile"
            )
