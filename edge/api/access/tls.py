"""TLS for the agent's HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable

from cutline.errors import InputError
from cutline.protos.channel.credentials import ServerKeys, file_version, load_pair

POLL_SECONDS = 10.0  # between checks for a changed certificate
SHUTDOWN_SECONDS = 2  # for a client to answer the TLS shutdown

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def tls(keys: ServerKeys) -> AsyncIterator[ssl.SSLContext]:
    """A TLS context for a server. A changed certificate applies to later connections. Raises InputError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # older ones are broken
    _load(context, keys)
    renewing = asyncio.create_task(_renew(context, keys))
    try:
        yield context
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])


class Secured(SSLProtocol):
    """The TLS of one connection; calls `came` when it is accepted, and `left` when it has ended.

    asyncio calls the `inner` protocol only after the handshake, which may take so many `seconds`.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        inner: asyncio.Protocol,
        *,
        seconds: float,
        came: Callable[[asyncio.Transport], object],
        left: Callable[[], object],
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            inner,
            context,
            None,  # type: ignore[arg-type] # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=seconds,  # type: ignore[arg-type] # parts of a second, too
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        self._came = came
        self._left = left

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._came(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._left()
        super().connection_lost(exc)


async def _renew(context: ssl.SSLContext, keys: ServerKeys) -> None:
    seen = file_version(keys.certificate), file_version(keys.key)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        versions = file_version(keys.certificate), file_version(keys.key)
        if versions != seen:
            seen = versions
            try:
                _load(context, keys)
            except InputError as error:  # perhaps one of the two files is not written yet
                log.error("%s; the certificate from before still counts", error)
            else:
                log.info("the certificate was read anew")


def _load(context: ssl.SSLContext, keys: ServerKeys) -> None:
    load_pair(context, keys.certificate, keys.key)
