"""An agent for programs without async: it runs in a thread of its own, and any thread may ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from cutline.core.request import Request
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer


class BlockingAgent:
    """`agent`, which must not have been entered: use this as a context manager in its place."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self._agent))
            self._stack, self._portal = stack.pop_all(), portal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal = None
        self._stack.__exit__(kind, error, trace)

    def answer(self, request: Request) -> Answer:
        """As `Agent.answer`: raises InputError, BundleError, WorkerError."""
        answering = self._there().start_task_soon(self._agent.answer, request)
        try:
            return answering.result()
        finally:
            answering.cancel()  # where Ctrl-C came while it was waited for; else of no effect

    def stream(self, request: Request) -> Iterator[Event]:
        """As `Agent.stream`: what happens, the `Answer` last. Close it to give up on the answer."""
        portal, events = self._there(), self._agent.stream(request)

        waiting: asyncio.Task[Any] | None = None

        async def following() -> Event | None:
            nonlocal waiting
            waiting = asyncio.current_task()
            return await anext(events, None)

        async def closing() -> None:
            if waiting is not None and not waiting.done():  # Ctrl-C came while it was waited for
                waiting.cancel()
                await asyncio.wait([waiting])
            await events.aclose()

        try:
            while (event := portal.call(following)) is not None:
                yield event
        finally:
            if self._portal is portal:
                portal.call(closing)

    def _there(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("use the agent as a context manager: with BlockingAgent(...) as agent")
        return self._portal
