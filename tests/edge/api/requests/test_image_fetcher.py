from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cutline.edge.api.requests import image_fetcher
from cutline.edge.api.requests.image_fetcher import Fetcher, is_public
from cutline.errors import ImageError, InputError

IMAGE = b"\x89PNG any bytes"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE

Names = dict[str, list[str]]


class Elsewhere:
    """A server that answers every request with the same bytes, and keeps what was asked."""

    def __init__(self, answer: bytes, *, endless: bool = False, silent: bool = False) -> None:
        self.asked: list[bytes] = []
        self.port = 0
        self._answer, self._endless, self._silent = answer, endless, silent

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self._silent:
                await asyncio.sleep(60)
            writer.write(self._answer)
            while self._endless:
                writer.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()  # whatever nobody reads any more


@asynccontextmanager
async def elsewhere(answer: bytes = OK, **kind: Any) -> AsyncIterator[Elsewhere]:
    one = Elsewhere(answer, **kind)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one
        await asyncio.sleep(0.01)  # a connection that was taken just now begins to be served, or nobody would close it


class Lookup:
    """Knows the addresses of some names, and how often it was asked."""

    def __init__(self, names: Names) -> None:
        self.count = 0
        self._names = names

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.count += 1
        return self._names[host]


def anything(address: image_fetcher.Address) -> bool:
    return True


def fetch(
    answer: bytes = OK,
    *,
    url: str = "http://images.test:{port}/a.png?x=1",
    hosts: Sequence[str] = ("images.test:{port}",),
    names: Names | None = None,
    allows: Callable[[image_fetcher.Address], bool] = anything,
    kind: dict[str, Any] | None = None,
    **limits: Any,
) -> tuple[bytes, Elsewhere]:
    async def run() -> tuple[bytes, Elsewhere]:
        async with elsewhere(answer, **(kind or {})) as one:
            lookup = Lookup(names or {"images.test": ["127.0.0.1"]})
            named = [host.format(port=one.port) for host in hosts]
            async with Fetcher(named, resolve=lookup, allows=allows, **limits) as fetcher:
                try:
                    return await fetcher.fetch(url.format(port=one.port)), one
                finally:
                    assert lookup.count <= 1, "it is looked up once"
                    reached.extend(one.asked)

    reached.clear()
    return asyncio.run(run())


reached: list[bytes] = []


@pytest.mark.threat("fetching")
def test_an_image_is_fetched_by_its_name() -> None:
    image, one = fetch()
    assert image == IMAGE
    (asked,) = one.asked
    assert asked.startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")
    assert f"host: images.test:{one.port}".encode() in asked.lower()
    assert b"accept-encoding: identity" in asked.lower()
    assert b"cookie" not in asked.lower()
    assert b"authorization" not in asked.lower()


@pytest.mark.threat("fetching")
@pytest.mark.parametrize(
    "url",
    [
        "http://other.test:{port}/",
        "http://images.test:1/",
        "http://images.test/",
        "http://sub.images.test:{port}/",
        "http://images.test.other:{port}/",
        "http://127.0.0.1:{port}/",
        "http://images.test:{port}@127.0.0.1/",
        "http://me:secret@images.test:{port}/",
        "http://127.0.0.1\\@images.test:{port}/",
        "ftp://images.test:{port}/",
        "http:///etc/passwd",
        "http://[::1]:{port}/",
        "http://[::1",
        "http://images.test:{port}/" + "a" * 3000,
        "http://images.test:{port}\r\nX-Other: 1/",
    ],
)
def test_what_was_not_allowed_is_not_asked(url: str) -> None:
    with pytest.raises(ImageError):
        fetch(url=url)
    assert reached == []


@pytest.mark.threat("fetching")
@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["10.0.0.1"], ["8.8.8.8", "192.168.0.1"], ["::ffff:127.0.0.1"], [], ["fe80::1%eth0"]],
)
def test_an_allowed_name_that_leads_inside_is_refused(addresses: list[str]) -> None:
    with pytest.raises(ImageError, match="public") as found:
        fetch(names={"images.test": addresses}, allows=is_public)
    assert reached == []
    assert not any(address in str(found.value) for address in addresses)


@pytest.mark.threat("fetching")
@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("0.0.0.0", False),  # noqa: S104 - an address, not a listener
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:0:0:0:0:0:1", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.threat("fetching")
@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nsecret", "status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "does not answer"),
        (b"not HTTP at all\r\n\r\n", "does not answer"),
    ],
)
def test_what_comes_back_wrong(answer: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match) as found:
        fetch(answer)
    assert "secret" not in str(found.value)
    assert len(reached) == 1, "nothing is followed"


@pytest.mark.threat("fetching", "late")
def test_an_image_without_end_is_left() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(ImageError, match="over 1 MiB"):
        fetch(head, kind={"endless": True}, most=1 << 20)


@pytest.mark.threat("fetching")
def test_a_server_that_says_nothing_is_left() -> None:
    with pytest.raises(ImageError, match="did not give it"):
        fetch(kind={"silent": True}, seconds=0.1)


@pytest.mark.parametrize("host", ["", "http://a", "a/b", "a:b", "me@a", "a?b", "a b"])
def test_hosts_are_written_plainly(host: str) -> None:
    with pytest.raises(InputError):
        Fetcher([host])
