"""The processes of a worker that runs on several devices: rank 0 starts the others, and they end with it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import torch
import torch.distributed as dist

from cutline.cloud.model.device_names import device_of
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.model.tensor_parallel import RankGroup, RankLost, check_ranks
from cutline.cloud.serving.rendezvous import rendezvous
from cutline.core.tied import tie
from cutline.errors import CutlineError, InputError
from cutline.models.bundle import Bundle

log = logging.getLogger(__name__)

START_SECONDS = 300.0  # to import torch, from a slow disk or on a busy machine; one that ends is noticed at once
STOP_SECONDS = 5.0
_MODULE = "cutline.cloud.serving.ranks"


class _Part(msgspec.Struct, frozen=True):
    """What a rank is told on its command line."""

    bundle: str
    start: str
    end: str
    context: int
    shorten: bool
    slots: int | None
    device: str
    dtype: str | None
    threads: int
    rank: int
    count: int
    store: str


class Ranks:
    """All `count` ranks of a worker, of which this process is the first; a context manager.

    The options are those of Target. Raises InputError where the target or its layers cannot be divided so, and RankLost
    where a rank does not start.
    """

    def __init__(
        self,
        bundle: Bundle,
        count: int,
        *,
        layers: tuple[str, str],
        capacity: Capacity,
        device: str,
        dtype: torch.dtype | None,
    ) -> None:
        line = bundle.manifest.line
        first, last = (line.decoder_layer(name) for name in layers)
        if first == last:
            raise InputError(f"there is no layer of the decoder in {':'.join(layers)} that devices could share")
        check_ranks(bundle, count)
        self._parts = [
            _Part(
                bundle=str(bundle.path),
                start=f"decoder.{first}",
                end=line.layers[line.place(f"decoder.{last - 1}") + 1],
                context=capacity.context,
                shorten=capacity.shorten,
                slots=capacity.slots,
                device=device_of(device, rank),
                dtype=None if dtype is None else str(dtype).removeprefix("torch."),
                threads=torch.get_num_threads(),
                rank=rank,
                count=count,
                store="",
            )
            for rank in range(1, count)
        ]
        self._count, self._device = count, device_of(device, 0)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ending = threading.Event()
        self._lost = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            path = str(stack.enter_context(rendezvous()) / "store")
            store = _store(path, self._count)
            for part in self._parts:
                part = msgspec.structs.replace(part, store=path)
                command = [sys.executable, "-m", _MODULE, msgspec.json.encode(part).decode()]
                # Processes that share cores must not wait busily: two that do run 30 to 100 times slower.
                environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
                # A pipe that is never written: it ends when this process does, however that ends.
                self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
            self._wait_for(store)
            self.group = RankGroup(store, rank=0, count=self._count, device=self._device)
            stack.callback(self._part)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def device(self) -> str:
        """That of this process."""
        return self._device

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of their processes, from rank 0 on."""
        return (os.getpid(), *(process.pid for process in self._processes))

    def kill(self) -> None:
        """End the other ranks at once, from any thread: one hangs, or all do. Whoever waits for them is freed."""
        self._lost = True
        self._ending.set()
        for process in self._processes:
            process.kill()

    def watch(self, on_lost: Callable[[RankLost], object]) -> None:
        """Call `on_lost` from another thread if a rank ends before it is told to."""

        def watch(process: subprocess.Popen[bytes], rank: int) -> None:
            code = process.wait()
            if not self._ending.is_set():
                self._lost = True
                log.critical("rank %d ended with code %d", rank, code)
                on_lost(RankLost(f"rank {rank} of the worker ended; its log says more"))

        for rank, process in enumerate(self._processes, 1):
            threading.Thread(target=watch, args=(process, rank), name=f"rank {rank}", daemon=True).start()

    def _wait_for(self, store: Any) -> None:
        """Until all ranks have come to where they meet."""
        latest = time.monotonic() + START_SECONDS
        while not store.check([_here(part.rank) for part in self._parts]):
            gone = [rank for rank, process in enumerate(self._processes, 1) if process.poll() is not None]
            if gone or time.monotonic() > latest:
                raise RankLost(f"rank {gone[0] if gone else 1} of the worker did not start; its log says more")
            time.sleep(0.02)

    def _part(self) -> None:
        """In order, if all are still there."""
        self._ending.set()
        if self._lost:
            return
        try:
            self.group.tell(None)
            for process in self._processes:
                process.wait(STOP_SECONDS)
            self.group.close()
        except (RankLost, subprocess.TimeoutExpired):
            log.warning("the ranks did not part in order")

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _store(path: str, count: int) -> Any:
    """Where `count` ranks find each other: a file, which nobody else can reach."""
    return dist.FileStore(path, count)  # type: ignore[attr-defined]  # torch does not say that it has it


def _here(rank: int) -> str:
    return f"rank {rank} is here"


def _follow(part: _Part) -> None:
    """A rank's life, until rank 0 says that it ends."""
    torch.set_num_threads(part.threads)
    store = _store(part.store, part.count)
    store.set(_here(part.rank), "")
    group = RankGroup(store, rank=part.rank, count=part.count, device=part.device)
    with contextlib.suppress(OSError):  # elsewhere than on Linux it ends when it next hears of the others
        tie()  # a rank that hangs must not outlive the first one
    target = Target(
        Bundle.open(Path(part.bundle)),
        Capacity(context=part.context, slots=part.slots, shorten=part.shorten),
        layers=(part.start, part.end),
        device=part.device,
        dtype=None if part.dtype is None else getattr(torch, part.dtype),
        group=group,
    )
    target.follow()
    group.close()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """A rank but the first, by what it is told on its command line."""
    # Whoever stops the worker may tell all of its processes; the first one tells the others when.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    part = msgspec.json.decode(sys.argv[1], type=_Part)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    try:
        _follow(part)
    except CutlineError as error:
        log.critical("rank %d: %s", part.rank, error)
        code = error.exit_code
    sys.stderr.flush()
    os._exit(code)  # not waiting for what another rank may never answer, nor for torch to tidy up


if __name__ == "__main__":
    main()
