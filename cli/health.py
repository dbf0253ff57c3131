"""`cutline health`."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli import options
from cutline.cli.fields import Without, with_options

EPILOG = "Example: cutline health 127.0.0.1:50051 --ca ca.crt"

SECONDS = 2.0  # for an answer; a port that nobody listens at is known at once


@with_options
def health(
    *,
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Where a worker or a directory listens.")
    ] = "127.0.0.1:50051",
    known_by: Annotated[options.WorkerKeys, Without({"token_file"})],
) -> None:
    """Ask a worker or a directory whether it serves: exit code 0 if it does, 4 if it is away, 7 if it takes nobody.

    For what starts and stops them, and cannot speak gRPC over TLS by itself. It needs no token.
    """
    import asyncio

    from cutline.cli.setting import open_keys
    from cutline.errors import WorkerFailed, WorkerUnavailable

    try:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    except ModuleNotFoundError as error:
        from cutline.errors.extras import missing

        raise missing(f"asking needs {error.name}", "cloud") from None

    from cutline.protos.channel.credentials import link_fault, open_channel

    keys = open_keys(known_by)

    def _fault(error: grpc.aio.AioRpcError) -> str:
        match error.code():
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"what listens at {address} did not answer within {SECONDS:g} seconds"
            case grpc.StatusCode.UNIMPLEMENTED:
                return f"what answers at {address} does not tell of its health: it is no worker and no directory"
        return link_fault(error.details() or "", address, keys)

    async def ask() -> int:
        async with open_channel(address, keys) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                raise WorkerUnavailable(_fault(error)) from None
        status: int = answer.status
        return status

    if asyncio.run(ask()) != health_pb2.HealthCheckResponse.SERVING:
        raise WorkerFailed(f"what listens at {address} takes no sessions now")
    print("serving")
