"""TLS for the agent's HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator

from cutline.errors import InputError
from cutline.protos.security import ServerKeys, file_version, read_pair

LOOK_SECONDS = 10.0

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def tls(keys: ServerKeys) -> AsyncIterator[ssl.SSLContext]:
    """What a server needs for TLS. Files that change count for connections made after that. Raises InputError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # older ones are broken
    _load(context, keys)
    renewing = asyncio.create_task(_renew(context, keys))
    try:
        yield context
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])


async def _renew(context: ssl.SSLContext, keys: ServerKeys) -> None:
    seen = file_version(keys.certificate), file_version(keys.key)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        versions = file_version(keys.certificate), file_version(keys.key)
        if versions != seen:
            seen = versions
            try:
                _load(context, keys)
            except InputError as error:  # perhaps one of the pair is not written yet
                log.error("%s; the certificate from before still counts", error)
            else:
                log.info("the certificate was read anew")


def _load(context: ssl.SSLContext, keys: ServerKeys) -> None:
    read_pair(keys.certificate, keys.key)
    context.load_cert_chain(keys.certificate, keys.key, password="")
