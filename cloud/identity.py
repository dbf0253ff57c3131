"""Who calls a worker: found by a token or a certificate before any handler runs, for every method but health's.

A caller is a tenant. It may say for whom of its own it asks, as a worker of a chain does for its agents; that divides
what belongs to the tenant further, and can never name what belongs to another.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cutline.cloud.audit import Audit
from cutline.cloud.shares import UNLIMITED
from cutline.errors import AccessDenied
from cutline.protos.security import TENANT_KEY
from cutline.protos.status import status_of
from cutline.protos.tokens import Limits, Tokens, is_tenant

# A load balancer has no token, and asks before it sends anybody here. What it learns is whether a worker serves.
OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
OPEN_CALLS = 32  # of those at once: nobody without a name fills the worker's calls with them

_WITHIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a `tenant`, "" where everybody may come, and for whom `within` it."""

    tenant: str
    within: str = ""

    @property
    def name(self) -> str:
        """Of whom what is kept belongs to. No tenant has a slash in its name, so nobody else has this one."""
        return f"{self.tenant}/{self.within}" if self.within else self.tenant


CALLER: ContextVar[Caller] = ContextVar("caller")  # of the call that is served; there is none without the gate


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call: the holders of `tokens`, those whom a certificate names, or everybody as the tenant ""."""

    tokens: Tokens | None = None
    certificates: bool = False

    def find(self, metadata: Sequence[tuple[str, str | bytes]], peer: Mapping[str, Sequence[bytes]]) -> Caller:
        """The caller, by a call's metadata and its `peer`, what gRPC learnt in the handshake. Raises AccessDenied."""
        within = _one(metadata, TENANT_KEY)
        if within and not _WITHIN.fullmatch(within):
            raise AccessDenied(f"{TENANT_KEY} is no tenant's name")
        return Caller(self._tenant(_one(metadata, "authorization"), peer), within)

    def limits(self, tenant: str) -> Limits:
        """What `tenant` may have."""
        if self.tokens is None:
            return Limits() if self.certificates else UNLIMITED
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


def _one(metadata: Sequence[tuple[str, str | bytes]], key: str) -> str:
    """The value of a key of text that may stand once. Raises AccessDenied."""
    found = [value for name, value in metadata if name == key]
    if len(found) > 1 or any(isinstance(value, bytes) for value in found):
        raise AccessDenied(f"{key} may stand once in a call")
    return str(found[0]) if found else ""


Behaviour = Callable[[Any, Any], Any]


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpcio has no types
    """Lets a call through to its handler once it is known who makes it; only `OPEN` methods have another way."""

    def __init__(self, callers: Callers, audit: Audit) -> None:
        self._callers = callers
        self._audit = audit
        self._open = 0

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> grpc.RpcMethodHandler:
        """The handler of a call, behind this gate. One that is not there is refused to strangers like the others."""
        method: str = details.method
        handler = await continuation(details)
        if method in OPEN and handler is not None:
            return self._counted(handler)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, _nothing))
        streaming = handler.request_streaming
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_stream_rpc_method_handler
            behaviour = self._stream(method, handler.stream_stream or handler.unary_stream, _reading(handler))
        else:
            make = grpc.stream_unary_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
            behaviour = self._unary(method, handler.stream_unary or handler.unary_unary, _reading(handler))
        # gRPC would read a lone request before anybody is asked who sent it, and log a traceback of one that is none.
        return make(behaviour, handler.request_deserializer if streaming else None, handler.response_serializer)

    def _unary(self, method: str, behaviour: Behaviour, read: Behaviour) -> Behaviour:
        async def pass_on(request: Any, context: Any) -> Any:
            async with self._passage(method, context):
                return await behaviour(await read(request, context), context)

        return pass_on

    def _stream(self, method: str, behaviour: Behaviour, read: Behaviour | None = None) -> Behaviour:
        async def pass_on(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._passage(method, context):
                message = request if read is None else await read(request, context)
                async with contextlib.aclosing(behaviour(message, context)) as answers:
                    async for answer in answers:
                        yield answer

        return pass_on

    @contextlib.asynccontextmanager
    async def _passage(self, method: str, context: Any) -> AsyncIterator[None]:
        try:
            caller = self._callers.find(context.invocation_metadata() or (), context.auth_context())
        except AccessDenied as error:
            self._audit.denied(method, error)
            await context.abort(status_of(error), str(error))
            raise  # abort does so itself
        CALLER.set(caller)
        outcome = "CANCELLED"  # unless something else is known
        try:
            yield
            outcome = "OK"
        except grpc.aio.AbortError:
            outcome = grpc.StatusCode(context.code()).name
            raise
        finally:
            self._audit.served(method, caller.name, outcome)

    def _counted(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """A handler of health's, none of which takes a stream."""
        behaviour: Behaviour = handler.unary_stream or handler.unary_unary
        read = _reading(handler)

        async def count(request: Any, context: Any) -> Any:
            if self._open >= OPEN_CALLS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many ask after this worker's health")
            self._open += 1
            try:
                return await behaviour(await read(request, context), context)
            finally:
                self._open -= 1

        make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.unary_unary_rpc_method_handler
        return make(count, None, handler.response_serializer)


def _reading(handler: grpc.RpcMethodHandler) -> Behaviour:
    """What makes a handler's request of what came: the message in its bytes, or of a stream that itself."""

    async def read(request: Any, context: Any) -> Any:
        if handler.request_streaming:
            return request
        try:
            return handler.request_deserializer(request)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")

    return read


async def _nothing(request: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    yield request
