"""The bodies of requests: read under limits of size, time and number, and taken apart as they come."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from starlette.requests import Request

from cutline.edge.api.access.limits import HttpLimits, busy
from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.requests.scanner import PIECE, Body, Scanner
from cutline.errors import InputError

SHARE = 0.1  # of the loop's time that taking the rest of all bodies may have while others are answered

_GZIP = 16 + zlib.MAX_WBITS


class Bodies:
    """The bodies of requests that are being read: so many, and so many bytes, at once; half a tenant's at most.

    While `others` are answered, large ones are taken slowly.
    """

    def __init__(self, others: Callable[[], bool], limits: HttpLimits) -> None:
        self._limits = limits
        self._turns = Turns(others)
        self._reading = Counter[str]()
        self._bytes = Counter[str]()

    async def read(self, request: Request, tenant: str) -> Body:
        """The whole body. Raises Refused for one that is too large, too slow, one too many, or not what it says."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _refused(415, "send JSON, as content-type: application/json")
        limits = self._limits
        if self._is_over(self._reading, limits.bodies - 1, tenant):
            raise self._too_many()
        coding = _coding(request.headers.get("content-encoding", "identity"))
        scanner, size = Scanner(), 0
        self._reading[tenant] += 1
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    for piece in coding.decoded(chunk):
                        size += len(piece)
                        self._bytes[tenant] += len(piece)
                        if size > limits.body:
                            raise _refused(413, f"the request is over {limits.body >> 20} MiB")
                        if self._is_over(self._bytes, limits.all_bodies, tenant):
                            raise self._too_many()
                        await self._turns.take(scanner, piece, large=size > limits.small_body)
                coding.end()
        except TimeoutError:
            raise _refused(408, f"the request did not arrive in {limits.body_seconds:.0f} seconds") from None
        finally:
            self._reading[tenant] -= 1
            self._bytes[tenant] -= size
        return scanner.body()

    @staticmethod
    def _is_over(counts: Counter[str], most: int, tenant: str) -> bool:
        return counts.total() > most or (tenant != "" and counts[tenant] > most // 2)

    @staticmethod
    def _too_many() -> Refused:
        return busy("the agent has too many requests to read; try again in a second", close=True)


class Turns:
    """The turns in which bodies are taken apart on the event loop, piece by piece.

    A large body takes as much of the processor as many answers. So while `others` are answered, pieces of large ones
    take turns, and pause in between: all together they have no more than SHARE of the loop's time, which leaves the
    rest of a body with the network, where it holds up nobody.
    """

    def __init__(
        self,
        others: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._others = others
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()

    async def take(self, scanner: Scanner, piece: bytes, *, large: bool) -> None:
        """Have the `scanner` take a piece. Raises Refused."""
        if not (large and self._others()):
            scanner.take(piece)
            await self._sleep(0.0)  # others have their turn, however much of this one is there already
            return
        async with self._turn:
            began = self._clock()
            scanner.take(piece)
            await self._sleep((self._clock() - began) * (1.0 / SHARE - 1.0))


class _Plain:
    """A body as it is."""

    def decoded(self, chunk: bytes) -> Iterator[bytes]:
        """The pieces of the body that `chunk` has, each of PIECE bytes at most."""
        for start in range(0, len(chunk), PIECE):
            yield chunk[start : start + PIECE]

    def end(self) -> None:
        """There is no more. Raises Refused where there should be."""


class _Gzip(_Plain):
    """A body that came compressed; what it would take is never more than its piece. Raises Refused for what is none."""

    def __init__(self) -> None:
        self._inflating = zlib.decompressobj(_GZIP)

    def decoded(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            try:
                piece = self._inflating.decompress(chunk, PIECE)
            except zlib.error:
                raise _refused(400, "the body is not gzip, as its content-encoding says") from None
            if self._inflating.unused_data:
                raise _refused(400, "something follows the body's gzip; send one stream of it")
            chunk = self._inflating.unconsumed_tail
            if piece:
                yield piece

    def end(self) -> None:
        if not self._inflating.eof:
            raise _refused(400, "the body's gzip is cut short")


def _coding(name: str) -> _Plain:
    """What reads bodies of a content-encoding. Raises Refused."""
    match name.strip().lower():
        case "identity" | "":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Gzip()
        case _:
            raise _refused(415, "send the body as it is, or with content-encoding: gzip")


def _refused(status: int, message: str) -> Refused:
    # A connection whose body was not read to its end is of no more use.
    return Refused(status, Fault(message, InputError.__name__), {"connection": "close"})
