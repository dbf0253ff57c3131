"""A worker within a program of Python, by its own few options; `cutline cloud` has them all."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Self

from anyio.from_thread import start_blocking_portal

from cutline.cloud.serving.server import ANYBODY, Access, WorkerOptions, serve
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.layerline import END
from cutline.protos.channel.address import is_loopback, parse_address


class Worker:
    """Serves the target of a `bundle` while it is entered, by `with` or by `async with`; then `address` is where.

    It listens at `listen` (HOST:PORT, port 0 for any free one). torch runs the `layers` (start, end) on its `device`;
    where those end before the head, `next_worker` is the address of the worker that goes on.
    There are as many sessions of as many tokens as memory has room for, unless `max_sessions` and `context` bound them.
    `access` says who may come; without it whoever is on this machine. One that breaks refuses every session that comes.
    Raises InputError for an address that others can reach without `access`; entering raises what `serve` does, and
    BundleError.
    """

    address: str

    def __init__(
        self,
        bundle: Bundle,
        *,
        listen: str = "127.0.0.1:0",
        device: str = "cpu",
        layers: tuple[str, str] = ("image", END),
        next_worker: str | None = None,
        max_sessions: int | None = None,
        context: int | None = None,
        access: Access = ANYBODY,
    ) -> None:
        if access.keys is None and not is_loopback(parse_address(listen)[0]):
            raise InputError(f"{listen} can be reached by others; give access with keys, or listen at 127.0.0.1")
        self._serving = serve(
            bundle,
            WorkerOptions(
                listen=listen,
                slots=max_sessions,
                context=context,
                device=device,
                layers=layers,
                next_worker=next_worker,
            ),
            access=access,
        )
        self._stack, self._thread = AsyncExitStack(), ExitStack()

    async def __aenter__(self) -> Self:
        self.address = await self._stack.enter_async_context(self._serving)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            self.address = stack.enter_context(portal.wrap_async_context_manager(self._serving))
            self._thread = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.__exit__(kind, error, trace)
