"""`cutline health`."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli import options

EPILOG = "Example: cutline health 127.0.0.1:50051 --ca ca.crt"

SECONDS = 3.0


def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Where a worker or a directory listens.")
    ] = "127.0.0.1:50051",
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
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

    from cutline.protos.security import open_channel

    keys = open_keys(ca, cert, key, None)

    async def ask() -> int:
        async with open_channel(address, keys) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise WorkerUnavailable(f"nobody tells of their health at {address}: {error.code().name}") from None
        status: int = answer.status
        return status

    if asyncio.run(ask()) != health_pb2.HealthCheckResponse.SERVING:
        raise WorkerFailed(f"what listens at {address} takes no sessions now")
    print("serving")
