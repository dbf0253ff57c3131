"""Authentication of a worker's callers, by token or certificate, before any message is read. Health checks need none.

A caller is a tenant. It may name a sub-tenant of its own, as a worker of a chain does for its agents. That divides the
tenant's state further, and never gives access to another tenant's.
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
from cutline.cloud.access.quota import UNLIMITED, RateUsage
from cutline.errors import AccessDenied, InputError
from cutline.protos.channel.credentials import TENANT_KEY, AgentKeys, ServerKeys
from cutline.protos.channel.revocation import Revoked
from cutline.protos.channel.token_file import Quota, Tokens, is_tenant
from cutline.protos.status import status_of

# A load balancer has no token. From these it learns only whether a worker serves.
OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
UNTIMED_METHODS = frozenset({"/cutline.v1.Worker/Session"})  # streams with limits of their own
MAX_REMEMBERED = 4096  # tenants and connections whose cancelled calls are counted

_WITHIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """What bounds the calls of a server beside their number."""

    open_calls: int = 32  # at once of each open method, so that anonymous callers cannot use up the worker's calls
    watch_seconds: float = 300.0  # longest health watch; then the client has to call again
    request_seconds: float = 5.0  # longest wait for a call's single message
    stream_seconds: float = 30.0  # longest duration of a stream that has no limits of its own
    cancelled_a_second: float = 20.0  # of a tenant, over the window of `RateUsage`: each costs the other tenants


CALL_LIMITS = CallLimits()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a `tenant`, "" if the worker is open to everybody, and its sub-tenant `within`, if it named one."""

    tenant: str
    within: str = ""

    @property
    def name(self) -> str:
        """The owner of cached state. It is unique, as a tenant's own name has no slash."""
        return f"{self.tenant}/{self.within}" if self.tenant and self.within else self.tenant or self.within


CALLER: ContextVar[Caller] = ContextVar("caller")  # of the current call; set by AuthInterceptor alone


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call: holders of `tokens`, holders of `certificates`, or with neither everybody, as the tenant "".

    A `revoked` certificate is refused, also with a valid token.
    """

    tokens: Tokens | None = None
    certificates: bool = False
    revoked: Revoked | None = None

    @classmethod
    def of(cls, keys: ServerKeys | None, tokens: Path | None) -> Callers:
        """The callers that these files of a server allow. Raises InputError."""
        return cls(
            None if tokens is None else Tokens(tokens),
            certificates=keys is not None and keys.client_ca is not None,
            revoked=None if keys is None or keys.revoked is None else Revoked(keys.revoked),
        )

    def find(self, metadata: Sequence[tuple[str, str | bytes]], peer: Mapping[str, Sequence[bytes]]) -> Caller:
        """The caller, from a call's metadata and `peer`, its TLS properties as gRPC has them. Raises AccessDenied."""
        within = _single_value(metadata, TENANT_KEY)
        if within and not _WITHIN.fullmatch(within):
            raise AccessDenied(f"{TENANT_KEY} is no tenant's name")
        if self.revoked is not None:  # also with a valid token
            self.revoked.check(_certificate(peer))
        return Caller(self._tenant(_single_value(metadata, "authorization"), peer), within)

    def match(
        self, keys: AgentKeys, metadata: Sequence[tuple[str, str | bytes]], peer: Mapping[str, Sequence[bytes]]
    ) -> bool:
        """Whether a call has the token of `keys` or, if `keys` have no token, their certificate.

        Always true if everybody may call. Raises InputError for keys that cannot be read.
        """
        if self.tokens is None and not self.certificates:
            return True
        if own := _single_value(keys.metadata(), "authorization"):
            return hmac.compare_digest(own.encode(), _single_value(metadata, "authorization").encode())
        return keys.certificate is not None and _certificate(peer) == _first_certificate(keys.certificate)

    def limits(self, tenant: str) -> Quota:
        """The quota of `tenant`."""
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
    """The client's certificate from the handshake (DER), None if it sent none."""
    try:
        return ssl.PEM_cert_to_DER_cert(peer["x509_pem_cert"][0].decode("ascii"))
    except (LookupError, ValueError):
        return None


def _first_certificate(path: Path) -> bytes:
    """The first certificate (DER) of a PEM file. Raises InputError."""
    try:
        text, end, _ = path.read_text("ascii").strip().partition(ssl.PEM_FOOTER)
        return ssl.PEM_cert_to_DER_cert(text + end)
    except (OSError, ValueError) as error:
        raise InputError(f"the certificate {path} does not read: {error}") from None


def _single_value(metadata: Sequence[tuple[str, str | bytes]], key: str) -> str:
    """The value of a metadata key, "" if it is missing. Raises AccessDenied if it occurs twice or is binary."""
    found = [value for name, value in metadata if name == key]
    if len(found) > 1 or any(isinstance(value, bytes) for value in found):
        raise AccessDenied(f"{key} may stand once in a call")
    return str(found[0]) if found else ""


Behaviour = Callable[[Any, Any], Any]
PendingCalls = dict[asyncio.Timeout, None]  # calls that wait for their single message, oldest first


@dataclass(slots=True)
class AuthenticatedCall:
    """An authenticated call, and whether any of it was `answered`."""

    answered: bool = False


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpcio has no types
    """Authenticates each call before its handler runs, except calls of OPEN_METHODS.

    Some of the `calls` that its server takes at once are reserved for tenants with few of them. It marks `connections`
    as authenticated, and ends those of a tenant that cancels too many calls.
    """

    def __init__(
        self,
        callers: Callers,
        audit: Audit,
        *,
        calls: int,
        connections: Connections,
        limits: CallLimits = CALL_LIMITS,
    ) -> None:
        self._callers = callers
        self._audit = audit
        self._calls = calls
        self._connections = connections
        self._limits = limits
        self._cancelled: dict[str, RateUsage] = {}  # calls cancelled before any answer, by tenant
        self._held: Counter[str] = Counter()  # open calls by tenant
        self._pending: PendingCalls = {}  # health checks
        self._watching = 0  # health watches

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> grpc.RpcMethodHandler:
        """The handler of a call with authentication before it. Strangers cannot tell whether a method exists."""
        method: str = details.method
        handler = await continuation(details)
        # For a unary request gRPC waits without limit, before any check of the caller, and logs a traceback if it does
        # not decode. So each is served as a stream of bytes, which is the same on the wire.
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, _nothing, None))
        if handler.response_streaming:
            behaviour: Behaviour = handler.stream_stream or handler.unary_stream
            serve = (
                self._watch(behaviour, handler) if method in OPEN_METHODS else self._stream(method, behaviour, handler)
            )
            make = grpc.stream_stream_rpc_method_handler
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            serve = (
                self._check(behaviour, handler) if method in OPEN_METHODS else self._unary(method, behaviour, handler)
            )
            make = grpc.stream_unary_rpc_method_handler
        read = handler.request_deserializer if handler.request_streaming else None
        return make(serve, read, handler.response_serializer)

    def _unary(self, method: str, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        async def handle(requests: Any, context: Any) -> Any:
            async with self._authenticated(method, context) as call:
                answer = await behaviour(await self._request(handler, requests, context, {}), context)
                call.answered = True
                return answer

        return handle

    def _stream(self, method: str, behaviour: Behaviour, handler: grpc.RpcMethodHandler | None) -> Behaviour:
        seconds = None if method in UNTIMED_METHODS else self._limits.stream_seconds

        async def handle(requests: Any, context: Any) -> None:
            async with self._authenticated(method, context) as call:
                request = requests if handler is None else await self._request(handler, requests, context, {})
                limit = asyncio.timeout(seconds)
                try:
                    async with limit, contextlib.aclosing(behaviour(request, context)) as answers:
                        async for answer in answers:
                            try:
                                await context.write(answer)
                            except (grpc.aio.InternalError, grpc.aio.UsageError):
                                # gRPC raises these for a cancelled call, before it cancels this task itself.
                                raise asyncio.CancelledError from None
                            call.answered = True
                except TimeoutError:
                    if not limit.expired():
                        raise
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "this call lasted too long; make another")

        return handle

    @contextlib.asynccontextmanager
    async def _authenticated(self, method: str, context: Any) -> AsyncIterator[AuthenticatedCall]:
        try:
            caller = self._callers.find(context.invocation_metadata() or (), context.auth_context())
        except AccessDenied as error:
            self._audit.denied(method, error)
            await context.abort(status_of(error), str(error))
            raise  # `abort` raises too; this tells the type checker
        CALLER.set(caller)
        peer: str = context.peer()
        if self._cancel_wait(caller.tenant or peer) > 0.0:
            self._connections.end(peer)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of yours were taken back; make fewer"
            )
        self._connections.let_in(peer)
        outcome, call = "CANCELLED", AuthenticatedCall()  # until another outcome is known
        found = may_call(self._held, self._calls, caller.tenant, self._limits.open_calls)
        self._held[caller.tenant] += 1
        try:
            if not found:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of yours are open; end some")
            yield call
            outcome = "OK"
        except grpc.aio.AbortError:
            outcome = grpc.StatusCode(context.code()).name
            raise
        finally:
            self._held -= Counter([caller.tenant])  # unlike `-= 1` this drops a count of 0
            if not call.answered and outcome == "CANCELLED":
                self._count_cancelled(caller.tenant or peer)
            self._audit.served(method, caller.name, outcome)

    def _cancel_wait(self, caller: str) -> float:
        """Seconds until a tenant, or a connection of anonymous callers, is within its rate of cancelled calls again."""
        return self._cancelled.get(caller, RateUsage()).wait(self._limits.cancelled_a_second, time.monotonic())

    def _count_cancelled(self, caller: str) -> None:
        now, rate = time.monotonic(), self._limits.cancelled_a_second
        if len(self._cancelled) >= MAX_REMEMBERED:
            self._cancelled = {key: used for key, used in self._cancelled.items() if used.wait(rate, now)}
        self._cancelled[caller] = self._cancelled.get(caller, RateUsage()).plus(1.0, rate, now)

    def _check(self, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        """Serve a health check, to anybody. If too many calls wait for their message, the oldest is closed."""

        async def check(requests: Any, context: Any) -> Any:
            if len(self._pending) >= self._limits.open_calls:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                if not oldest.expired():
                    oldest.reschedule(0.0)
            return await behaviour(await self._request(handler, requests, context, self._pending), context)

        return check

    def _watch(self, behaviour: Behaviour, handler: grpc.RpcMethodHandler) -> Behaviour:
        """Serve a health watch, to anybody, so many at once and for so long each as the limits say."""

        async def watch(requests: Any, context: Any) -> None:
            if self._watching >= self._limits.open_calls:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch this worker's health")
            self._watching += 1
            try:
                request = await self._request(handler, requests, context, {})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.watch_seconds):
                        await behaviour(request, context)
            finally:
                self._watching -= 1

        return watch

    async def _request(self, handler: grpc.RpcMethodHandler, requests: Any, context: Any, pending: PendingCalls) -> Any:
        """What a handler takes: the stream of messages or the single one, for which the call waits in `pending`."""
        if handler.request_streaming:
            return requests
        data, patience = None, asyncio.timeout(self._limits.request_seconds)
        try:
            async with patience:
                pending[patience] = None
                data = await anext(aiter(requests), None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message of this call did not come")
        finally:
            pending.pop(patience, None)
        try:
            if data is not None:
                return handler.request_deserializer(data)
        except DecodeError:
            pass
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")


def may_call(held: Mapping[str, int], calls: int, tenant: str, open_calls: int) -> bool:
    """Whether `tenant` may open one more of the server's `calls`; `held` has the open calls of each tenant.

    A third is reserved for tenants below an equal share, counted with one tenant more. If callers are anonymous, only
    the `open_calls` for health checks are reserved.
    """
    if not tenant:
        return sum(held.values()) < calls - min(open_calls, calls // 3)
    others = sum(1 for name, count in held.items() if count and name != tenant)
    return sum(held.values()) < calls - calls // 3 or held.get(tenant, 0) < calls // (others + 2)


async def _nothing(request: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    yield request
