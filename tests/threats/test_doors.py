"""Servers beside the worker's: every method of a cluster's directory, and what a Ray that is started here is told."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cutline.cloud.cluster.directory import SERVICE, serve
from cutline.cloud.serving.server import SERVICE as WORKER
from cutline.protos.channel.token_file import token_entry
from cutline.protos.directory import Listing
from cutline.protos.v1 import directory_pb2 as pb

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"


class Nobody:
    """Who knows of no workers, and must not be asked by strangers."""

    def __init__(self) -> None:
        self.asked = 0

    def listing(self, *, model: str, everyone: bool) -> Listing:
        self.asked += 1
        return Listing(epoch="", version=0, wanted=0, workers=())

    def restart(self) -> None:
        self.asked += 1


@pytest.mark.threat("doors")
def test_a_directory_tells_strangers_nothing_but_that_it_is_well(tmp_path: Path) -> None:
    tokens, source = tmp_path / "tokens.toml", Nobody()
    tokens.write_text(token_entry("harbour", "one"))
    methods = [f"/{SERVICE}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["Directory"].methods]
    others = [f"/{SERVICE}/Hidden", f"/{WORKER}/Session", "/grpc.reflection.v1alpha.ServerReflection/Info", "//", "/x"]
    strangers = [(), (("authorization", "Bearer two"),), (("authorization", "one"),), (("cookie", "one"),)]

    async def main() -> None:
        async with (
            serve(source, listen="127.0.0.1:0", tokens=tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            for method in [*methods, *others]:
                for metadata in strangers:
                    for body in (b"", b"\xff" * 40):  # nor is it read
                        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                            await channel.unary_unary(method)(body, metadata=metadata, timeout=9)
            assert source.asked == 0
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=9)
            await channel.unary_unary(methods[0])(b"", metadata=(("authorization", "Bearer one"),), timeout=9)
            assert source.asked == 1

    asyncio.run(main())


STARTED = """
import json, os, ray
from cutline.cloud.cluster.ray_env import prepare
prepare(None)
told = {}
ray.init, ray.shutdown = (lambda **options: told.update(options)), (lambda: None)
from cutline.cloud.cluster.ray_backend import connected
with connected(None):
    print(json.dumps([told, {name: one for name, one in os.environ.items() if name.startswith("RAY_")}], default=str))
"""


@pytest.mark.threat("ray")
def test_a_ray_of_our_own_is_on_this_machine_with_a_token_and_no_dashboard() -> None:
    """In a process of its own, for Ray changes what imports it."""
    pytest.importorskip("ray")
    command = [sys.executable, "-W", "ignore", "-c", STARTED]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(command, env=clean | {"PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True, check=True)
    options, environment = json.loads(ran.stdout.splitlines()[-1])
    assert (options["address"], options["_node_ip_address"]) == ("local", "127.0.0.1")
    assert options["include_dashboard"] is False
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
