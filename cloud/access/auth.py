"""Who calls a worker: found by a token or a certificate before anything it sends is read, but for health's methods.

A caller is a tenant. It may say for whom of its own it asks, as a worker of a chain does for its agents; that divides
what belongs to the tenant further, and can never name what belongs to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cutline.cloud.access.audit import Audit
from cutline.cloud.access.connections import Connections
from cutline.cloud.access.quota import UNLIMITED, Used
from cutline.errors import AccessDenied, InputError
from cutline.protos.channel.credentials import TENANT_KEY, AgentKeys, ServerKeys
from cutline.protos.channel.revocation import Revoked
from cutline.protos.channel.token_file import Quota, Tokens, is_tenant
from cutline.protos.status import status_of

# A load balancer has no token, and asks before it sends anybody here. What it learns is whether a worker serves.
OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
OPEN_CALLS = 32  # of each of those at once: nobody without a name fills the worker's calls with them
WATCH_SECONDS = 300.0  # after which who watches does so anew
REQUEST_SECONDS = 5.0  # for a call's only message to come in
LASTING = frozenset({"/cutline.v1.Worker/Session"})  # which has limits of its own
STREAM_SECONDS = 30.0  # of any other stream
GIVEN_UP_A_SECOND = 20.0  # calls of a tenant that may be taken back, over the window of `Used`: each costs the others
MOST_REMEMBERED = 4096  # tenants and connections

_WITHIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a `tenant`, "" where everybody may come, and for whom `within` it."""

    tenant: str
    within: str = ""

    @property
    def name(self) -> str:
        """Of whom what is kept belongs to. No tenant has a slash in its name, so nobody else has this one."""
        return f"{self.tenant}/{self.within}" if self.tenant and self.within else self.tenant or self.within


CALLER: ContextVar[Caller] = ContextVar("caller")  # of the call that is served; there is none without the gate


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call: the holders of `tokens`, those whom a certificate names, or everybody as the tenant "".

    None of them by a certificate that is `revoked`.
    """

    tokens: Tokens | None = None
    certificates: bool = False
    revoked: Revoked | None = None

    @classmethod
    def of(cls, keys: ServerKeys | None, tokens: Path | None) -> Callers:
        """Those of a server with these files. Raises InputError."""
        return cls(
            None if tokens is None else Tokens(tokens),
            certificates=keys is not None and keys.client_ca is not None,
            revoked=None if keys is None or keys.revoked is None else Revoked(keys.revoked),
        )

    def find(self, metadata: Sequence[tuple[str, str | bytes]], peer: Mapping[str, Sequence[bytes]]) -> Caller:
        """The caller, by a call's metadata and its `peer`, what gRPC learnt in the handshake. Raises AccessDenied."""
        within = _one(metadata, TENANT_KEY)
        if within and not _WITHIN.fullmatch(within):
            raise AccessDenied(f"{TENANT_KEY} is no tenant's name")
        if self.revoked is not None:  # whatever token comes with it
            self.revoked.check(_certificate(peer))
        return Caller(self._tenant(_one(metadata, "authorization"), peer), within)

    def are_those(
        self, keys: AgentKeys, metadata: Sequence[tuple[str, str | bytes]], peer: Mapping[str, Sequence[bytes]]
    ) -> bool:
        """Whether a call comes with the token of `keys`, or if they have none with their certificate.

        Always, where everybody may come. Raises InputError for keys that do not read.
        """
        if self.tokens is None and not self.certificates:
            return True
        if own := _one(keys.metadata(), "authorization"):
            return hmac.compare_digest(own.encode(), _one(metadata, "authorization").encode())
        return keys.certificate is not None and _certificate(peer) == _first_certificate(keys.certificate)

    def limits(self, tenant: str) -> Quota:
        """What `tenant` may have."""
        if self.tokens is None:
            return Quota() if self.certificates else UNLIMITED
        return self.tokens.limits(tenant)

    def _tenant(self, authorization: str, peer: Mapping[str, Sequence[bytes]]) -> str:
        if self.tokens is None and not self.certificates:
            return ""
        if self.tokens is not None and authorization:
            scheme, _, token = authorization.partition(" ")
            found = self.tokens.tenant(token) if scheme.lower() == "bearer" else None
            if found is None:
                raise AccessDenied("this worker does not know the token; see --token-file")
            return found
        if self.certificates:
            names = [*peer.get("x509_common_name", ()), *peer.get("x509_subject_alternative_name", ())]
            if names and is_tenant(name := names[0].decode("ascii", "replace")):
                return name
            raise AccessDenied("the certificate names no tenant; make one with `cutline keys add-device`")
        raise AccessDenied("this worker wants a token; give --token-file, or set CUTLINE_TOKEN")


def _certificate(peer: Mapping[str, Sequence[bytes]]) -> bytes | None:
    """What was shown in the handshake (DER), None if that was nothing."""
    try:
        return ssl.PEM_cert_to_DER_cert(peer["x509_pem_cert"][0].decode("ascii"))
    except (LookupError, ValueError):
        return None


def _first_certificate(path: Path) -> bytes:
    """The first one (DER) of a file in PEM. Raises InputError."""
    try:
        text, end, _ = path.read_text("ascii").strip().partition(ssl.PEM_FOOTER)
        return ssl.PEM_cert_to_DER_cert(text + end)
    except (OSError, ValueError) as error:
        raise InputError(f"the certificate {path} does not read: {error}") from None


def _one(metadata: Sequence[tuple[str, str | bytes]], key: str) -> str:
    """The value of a key of text that may stand once. Raises AccessDenied."""
    found = [value for name, value in metadata if name == key]
    if len(found) > 1 or any(isinstance(value, bytes) for value in found):
        raise AccessDenied(f"{key} may stand once in a call")
    return str(found[0]) if found else ""


Behaviour = Callable[[Any, Any], Any]
Asking = dict[asyncio.Timeout, None]  # calls whose lone message is waited for, the oldest first


@dataclass(slots=True)
class Passage:
    """A call that was let in, and whether anything was `answered` to it."""

    answered: bool = False


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpcio has no types
    """Lets a call through to its handler once it is known who makes it; only `OPEN` methods have another way.

    Of the `calls` that its server takes at once some are kept for tenants that have few. It tells `connections` over
    which of them somebody was let in, and ends those of a tenant that takes back calls without end.
    """

    def __init__(self, callers: Callers, audit: Audit, *, calls: int, connections: Connections) -> None:
        self._callers = callers
        self._audit = audit
        self._calls = calls
        self._connections = connections
        self._given_up: dict[str, Used] = {}  # calls that were taken back before they were answered, by tenants
        self._held: Counter[str] = Counter()  # by tenants
        self._asking: Asking = {}  # after health
        self._watching = 0  # likewise

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> grpc.RpcMethodHandler:
        """The handler of a call, behind this gate. One that is not there is refused to strangers like the others."""
        method: str = details.method
        handler = await continuation(details)
        # gRPC waits for a lone request, for as long as it takes, before anybody is asked who sends it. So each is taken
        # as a stream of bytes, which is the same on the wire; also, gRPC logs a traceback of one that is no message.
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, _nothing, None))
        if handler.response_streaming:
            behaviour: Behaviour = handler.stream_stream or handler.unary_stream
            serve = self._watch(behaviour, handler) if method in OPEN else self._stream(method, behaviour, handler)
            make = grpc.stream_stream_rpc_method_handler
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            serve = self._check(behaviour, handler) if method in OPEN else self._unary(method, behaviour, handler)
            make = grpc.stream_unary_rpc_method_handler
        read = handler.request_deserializer if handler.request_streaming else None
        return make(serve, read, handler.response_serializer)

    def _unary(self, method: str, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        async def pass_on(requests: Any, context: Any) -> Any:
            async with self._passage(method, context) as passage:
                answer = await behaviour(await _request(handler, requests, context, {}), context)
                passage.answered = True
                return answer

        return pass_on

    def _stream(self, method: str, behaviour: Behaviour, handler: grpc.RpcMethodHandler | None) -> Behaviour:
        seconds = None if method in LASTING else STREAM_SECONDS

        async def pass_on(requests: Any, context: Any) -> None:
            async with self._passage(method, context) as passage:
                request = requests if handler is None else await _request(handler, requests, context, {})
                limit = asyncio.timeout(seconds)
                try:
                    async with limit, contextlib.aclosing(behaviour(request, context)) as answers:
                        async for answer in answers:
                            try:
                                await context.write(answer)
                            except (grpc.aio.InternalError, grpc.aio.UsageError):
                                # gRPC's words for a call that was taken back; soon it would cancel this itself.
                                raise asyncio.CancelledError from None
                            passage.answered = True
                except TimeoutError:
                    if not limit.expired():
                        raise
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "this call lasted too long; make another")

        return pass_on

    @contextlib.asynccontextmanager
    async def _passage(self, method: str, context: Any) -> AsyncIterator[Passage]:
        try:
            caller = self._callers.find(context.invocation_metadata() or (), context.auth_context())
        except AccessDenied as error:
            self._audit.denied(method, error)
            await context.abort(status_of(error), str(error))
            raise  # abort does so itself
        CALLER.set(caller)
        peer: str = context.peer()
        if self._gave_up(caller.tenant or peer) > 0.0:
            self._connections.end(peer)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of yours were taken back; make fewer"
            )
        self._connections.let_in(peer)
        outcome, passage = "CANCELLED", Passage()  # unless something else is known
        found = may_call(self._held, self._calls, caller.tenant)
        self._held[caller.tenant] += 1
        try:
            if not found:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of yours are open; end some")
            yield passage
            outcome = "OK"
        except grpc.aio.AbortError:
            outcome = grpc.StatusCode(context.code()).name
            raise
        finally:
            self._held -= Counter([caller.tenant])  # and none that is 0
            if not passage.answered and outcome == "CANCELLED":
                self._give_up(caller.tenant or peer)
            self._audit.served(method, caller.name, outcome)

    def _gave_up(self, who: str) -> float:
        """Seconds until few enough calls of a tenant, or of a connection where nobody has a name, were taken back."""
        return self._given_up.get(who, Used()).wait(GIVEN_UP_A_SECOND, time.monotonic())

    def _give_up(self, who: str) -> None:
        now = time.monotonic()
        if len(self._given_up) >= MOST_REMEMBERED:
            self._given_up = {one: used for one, used in self._given_up.items() if used.wait(GIVEN_UP_A_SECOND, now)}
        self._given_up[who] = self._given_up.get(who, Used()).plus(1.0, GIVEN_UP_A_SECOND, now)

    def _check(self, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        """Of health, for anybody. Where too many do not say what they ask, the one that was given longest is ended."""

        async def check(requests: Any, context: Any) -> Any:
            if len(self._asking) >= OPEN_CALLS:
                oldest = next(iter(self._asking))
                del self._asking[oldest]
                if not oldest.expired():
                    oldest.reschedule(0.0)
            return await behaviour(await _request(handler, requests, context, self._asking), context)

        return check

    def _watch(self, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        """Of health, for anybody: so many at once, who may come again once their time is up."""

        async def watch(requests: Any, context: Any) -> None:
            if self._watching >= OPEN_CALLS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch this worker's health")
            self._watching += 1
            try:
                request = await _request(handler, requests, context, {})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_SECONDS):
                        await behaviour(request, context)
            finally:
                self._watching -= 1

        return watch


def may_call(held: Mapping[str, int], calls: int, tenant: str) -> bool:
    """Whether `tenant` may have one more of so many `calls`, by who holds how many.

    A third of them is kept for those that have less than an equal share would be with one tenant more. Where nobody
    knows who calls, only those are kept in which health answers.
    """
    if not tenant:
        return sum(held.values()) < calls - min(OPEN_CALLS, calls // 3)
    others = sum(1 for one, count in held.items() if count and one != tenant)
    return sum(held.values()) < calls - calls // 3 or held.get(tenant, 0) < calls // (others + 2)


async def _request(handler: grpc.RpcMethodHandler, requests: Any, context: Any, asking: Asking) -> Any:
    """What a handler takes: the stream of messages, or the only one, until which the call is among `asking`."""
    if handler.request_streaming:
        return requests
    data, patience = None, asyncio.timeout(REQUEST_SECONDS)
    try:
        async with patience:
            asking[patience] = None
            data = await anext(aiter(requests), None)
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message of this call did not come")
    finally:
        asking.pop(patience, None)
    try:
        if data is not None:
            return handler.request_deserializer(data)
    except DecodeError:
        pass
    return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")


async def _nothing(request: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    yield request
