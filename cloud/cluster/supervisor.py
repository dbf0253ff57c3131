"""A supervisor: starts one worker as a child process, watches it, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cutline.cloud.cluster.members import Endpoints
from cutline.core.tied import tied_command
from cutline.errors import AccessDenied, InputError, WorkerBusy, WorkerError, WorkerFailed, WorkerUnavailable
from cutline.protos.channel.connection import Connection
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Description

log = logging.getLogger(__name__)

START_SECONDS = 600.0  # enough to load many gigabytes of weights from a slow disk
LOOK_SECONDS = 5.0
MISSES = 3  # failed checks in a row: a worker on a busy machine may miss one, one that hangs misses all
END_SECONDS = 5.0  # for a worker without open sessions to end
_LINE = 1 << 16  # bytes


class Supervisor:
    """Runs `cutline cloud` with these `options` on `threads` threads, and calls it with `keys`.

    The worker has `drain` seconds to end open sessions.
    """

    def __init__(self, options: Sequence[str], *, keys: AgentKeys = NO_KEYS, threads: int, drain: float) -> None:
        self._options = tuple(options)
        self._keys = keys
        self._threads = threads
        self._drain = drain
        self._process: asyncio.subprocess.Process | None = None
        self._client: WorkerClient | None = None
        self._health: Connection | None = None
        self._described: Description | None = None  # the latest
        self._reading: asyncio.Task[None] | None = None
        self._last = "it said nothing"
        self._missed = 0
        self._stopped = False

    async def start(self) -> Endpoints:
        """Start the worker; returns its endpoints. Raises WorkerUnavailable with its last line on stderr."""
        # In a session of its own, so that Ctrl-C in the terminal does not reach it: `stop` ends it.
        self._process = process = await asyncio.create_subprocess_exec(
            *tied_command("cutline.cli", "cloud", "--threads", str(self._threads), *self._options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            env=os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(self._threads)},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = asyncio.create_task(self._read(process.stderr))
        if self._stopped:
            _signal(process, signal.SIGTERM)
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode(errors="replace")
        except TimeoutError:
            raise WorkerUnavailable(f"it did not start within {START_SECONDS:.0f} seconds") from None
        if " listens at " not in line:
            await asyncio.wait([self._reading], timeout=LOOK_SECONDS)
            raise WorkerUnavailable(f"it did not start: {self._last}")
        address = line.split()[-1]
        self._client = WorkerClient(address, self._keys)
        self._health = Connection(address, self._keys, health_pb2_grpc.HealthStub)
        metrics = ""
        if "--metrics" in self._options:  # the worker prints their address in the next line
            with contextlib.suppress(TimeoutError):
                line = await asyncio.wait_for(_line(process.stdout), LOOK_SECONDS)
                metrics = line.split()[-1] if line.startswith("metrics at ") else ""
        return Endpoints(address, metrics)

    async def look(self, after: float) -> Description:
        """Its description in `after` seconds. Raises WorkerUnavailable once it ends, WorkerFailed if it hangs."""
        assert self._process is not None
        while True:
            await self._raise_if_ended(after)
            try:
                described = await self._describe()
                # In these states its health is bad on purpose, and a restart would not help.
                if not (self._stopped or described.draining or described.blocked):
                    await self._check_health()
            except (WorkerError, InputError) as error:
                self._missed += 1
                if self._missed >= MISSES:
                    raise WorkerFailed(f"it does not answer: {error}") from None
                after = 1.0
            else:
                self._missed = 0
                return described

    async def stop(self) -> None:
        """Have it drain and end; kill it if that takes too long."""
        self._stopped = True
        if (process := self._process) is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._drain + END_SECONDS)
        except TimeoutError:
            log.warning("the worker did not end in %.0f seconds; killed", self._drain + END_SECONDS)
            _signal(process, signal.SIGKILL)
            await process.wait()

    async def kill(self) -> None:
        """Kill it, even if it hangs."""
        self._stopped = True
        if (process := self._process) is not None:
            _signal(process, signal.SIGKILL)
            await process.wait()
        for connection in (self._client, self._health):
            if connection is not None:
                await connection.close()

    async def _describe(self) -> Description:
        """Its description, or the latest one after a failure that is not its own. Raises WorkerError, InputError.

        Such a failure is a refused token, a busy worker, or a key file that is just being written.
        """
        assert self._client is not None
        try:
            self._described = await self._client.describe()
        except (AccessDenied, InputError, WorkerBusy) as error:
            if self._described is None:
                raise
            log.warning("how the worker is cannot be asked now: %s", error)
        return self._described

    async def _raise_if_ended(self, after: float) -> None:
        process, reading = self._process, self._reading
        assert process is not None
        assert reading is not None
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(process.wait(), after)
            await asyncio.wait([reading], timeout=END_SECONDS)
            raise WorkerUnavailable(f"it ended with code {code}: {self._last}")

    async def _check_health(self) -> None:
        """Raises WorkerFailed if the worker's health check fails."""
        assert self._health is not None
        request = health_pb2.HealthCheckRequest(service="")
        try:
            line = self._health.line
            answer = await line.hold(line.stub.Check(request, timeout=LOOK_SECONDS))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # it answers, so it does not hang
                return
            raise WorkerFailed(f"its health is not known: {error.code().name}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise WorkerFailed("it says that it serves no sessions")

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        """Copy the worker's stderr to this process's, and remember its last line."""
        while line := await _line(stderr):
            sys.stderr.write(line)
            self._last = line.strip().removeprefix("cutline: ") or self._last


async def _line(stream: asyncio.StreamReader) -> str:
    try:
        return (await stream.readline()).decode(errors="replace")
    except ValueError:  # longer than the stream's limit, which dropped it
        return "(a line too long to show)\n"


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
