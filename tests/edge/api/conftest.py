from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from cutline.demo.bundles import DRAFTER
from cutline.edge.api.server import ServerOptions, serve
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent

Serving = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def agent() -> ScriptedAgent:
    """An agent that answers as it was told."""
    return ScriptedAgent(Bundle.open(DRAFTER).manifest)


@pytest.fixture
def serving(agent: ScriptedAgent) -> Serving:
    """Serves the agent as `cutline edge` does, on a free port; gives the URL."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[str]:
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        given = ServerOptions(**{"listen": "127.0.0.1:0"} | options)
        stop = asyncio.Event()
        server = asyncio.create_task(serve(agent, given, announce=listening.set_result, stop=stop))
        both: list[asyncio.Future[Any]] = [server, listening]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if server.done():
            server.result()
        try:
            yield f"http://{listening.result()}"
        finally:
            stop.set()
            await server

    return run
