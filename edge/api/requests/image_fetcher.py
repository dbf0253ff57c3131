"""Fetching images from hosts that the person who started the agent has named, and from nowhere else.

What a client may make the agent ask is bounded: such hosts alone, at an address that is public and looked up once, with
no redirects, so many bytes and so many seconds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

import httpx

from cutline.errors import ImageError, InputError
from cutline.models.images import MAX_BYTES

FETCH_SECONDS = 15.0
MAX_URL = 2048  # characters
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# Addresses that stand for others: what is behind them is not known.
_TUNNELS = tuple(ipaddress.ip_network(one) for one in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet: not of this machine, its network, or a tunnel to them."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or any(address in network for network in _TUNNELS):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, as the system finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Fetches from `hosts`, each HOST or HOST:PORT; without a port, the usual ones. Use as an async context manager.

    Raises InputError for a host that is written otherwise.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        resolve: Resolve = resolve,
        allows: Callable[[Address], bool] = is_public,
        most: int = MAX_BYTES,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._hosts = frozenset(_checked(host) for host in hosts)
        self._resolve = resolve
        self._allows = allows
        self._most = most
        self._seconds = seconds
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def fetch(self, url: str, *, room: int = MAX_BYTES) -> bytes:
        """What stands at `url`, if there is `room` for so many bytes.

        Raises ImageError, which of what was found there tells the status alone.
        """
        asked = self._parsed(url)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._get(asked, await self._address_of(asked), room)
        except TimeoutError:
            raise ImageError(f"the image's address did not give it in {self._seconds:.0f} seconds") from None
        except (httpx.HTTPError, OSError):
            raise ImageError("the image's address does not answer; send the image as a `data:` URL") from None

    def _parsed(self, url: str) -> httpx.URL:
        try:
            asked = httpx.URL(url) if len(url) <= MAX_URL else httpx.URL()
        except (httpx.InvalidURL, ValueError):
            raise ImageError("the image's address is no URL") from None
        if asked.scheme not in _PORTS or asked.userinfo or not asked.host:
            raise ImageError(
                "the image's address is not one that is fetched; give http(s)://HOST/... without a password"
            )
        host = _bracketed(asked.raw_host.decode("ascii").lower())
        port = asked.port or _PORTS[asked.scheme]
        if not self._hosts & ({f"{host}:{port}"} | ({host} if port == _PORTS[asked.scheme] else set())):
            raise ImageError("images are fetched from the hosts alone that the agent was started with (--allow-url)")
        return asked

    async def _address_of(self, asked: httpx.URL) -> Address:
        """The one address that is asked: looked up once, so that it is the same that was checked."""
        host = asked.raw_host.decode("ascii")
        found = await self._resolve(host, asked.port or _PORTS[asked.scheme])
        addresses = [ipaddress.ip_address(one.partition("%")[0]) for one in found]
        if not addresses or not all(self._allows(one) for one in addresses):
            raise ImageError("the image's host has no public address, or another beside it")
        return addresses[0]

    async def _get(self, asked: httpx.URL, address: Address, room: int) -> bytes:
        # The name stays in the Host header, and in what the certificate is checked against.
        request = self._opened().build_request(
            "GET",
            asked.copy_with(host=str(address), fragment=None),
            headers={"host": asked.netloc.decode("ascii"), "accept-encoding": "identity"},
            extensions={"sni_hostname": asked.raw_host.decode("ascii")},
        )
        response = await self._opened().send(request, stream=True)
        try:
            if response.status_code != 200:
                raise ImageError(f"the image's address answers with status {response.status_code}")
            return await self._read(response, room)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response, room: int) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":  # which could be a bomb
            raise ImageError("the image's address gives it compressed, which was not asked for")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self._most:
                raise ImageError(f"the image is over {self._most >> 20} MiB; save it smaller")
            if len(data) > room:
                raise ImageError("the images are too large together; save them smaller")
        return bytes(data)

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:  # it reads certificates, which takes a while
            # No connection is kept: one name's must not serve another's request. And no proxy comes between.
            limits = httpx.Limits(max_keepalive_connections=0)
            timeout = httpx.Timeout(self._seconds)
            self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits, timeout=timeout)
        return self._client


def _checked(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise InputError(f"{host!r} is no host to fetch images from; give HOST or HOST:PORT")
    return host.lower()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
