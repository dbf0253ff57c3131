"""Workers and agents as processes of their own, started and ended by a command."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cutline.core.tied import tied_command
from cutline.errors import WorkerUnavailable

START_SECONDS = 600  # of a big model on a slow disk; one that fails ends at once
STOP_SECONDS = 5
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def worker_process(target: Path, *options: str, threads: int = 1) -> Iterator[str]:
    """A worker of the bundle `target`, with more `options` of `cutline cloud`; gives its address, HOST:PORT.

    Raises WorkerUnavailable if it does not start.
    """
    # Whoever started it waits for its end.
    given = ("--bundle", str(target), "--threads", str(threads), "--drain", "0", *options)
    with _running("cloud", *given) as address:
        yield address


@contextmanager
def agent_process(drafter: Path, worker: str, *options: str, threads: int = 1) -> Iterator[str]:
    """An agent of the bundle `drafter` with a worker, with more `options` of `cutline edge`; gives its address.

    Raises WorkerUnavailable likewise.
    """
    with _running("edge", "--bundle", str(drafter), "--worker", worker, "--threads", str(threads), *options) as address:
        yield address


@contextmanager
def _running(command: str, *arguments: str) -> Iterator[str]:
    with ExitStack() as stack:
        with _no_interrupt():  # between the start of a process and our answering for it
            given = ("--listen", "127.0.0.1:0", "--insecure", *arguments)
            process = _start(tied_command("cutline.cli", command, *given))
            assert process.stdout is not None
            assert process.stderr is not None
            stack.enter_context(process.stdout)
            stack.enter_context(process.stderr)
            heard: list[str] = []
            # A pipe that nobody reads fills up and stops the process that writes.
            reader = threading.Thread(target=heard.extend, args=[process.stderr], daemon=True)
            reader.start()
            stack.callback(reader.join, STOP_SECONDS)
            stack.callback(_end, process)
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.daemon = True
        watchdog.start()
        stack.callback(watchdog.cancel)
        line = process.stdout.readline()
        watchdog.cancel()
        if " listens at " not in line:
            process.wait(STOP_SECONDS)
            reader.join(STOP_SECONDS)
            reason = heard[-1].strip().removeprefix("cutline: ") if heard else "it said nothing"
            raise WorkerUnavailable(f"`cutline {command}` did not start: {reason}")
        yield line.split()[-1]


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    # Processes that share cores must not wait busily: two that do run 30 to 100 times slower.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put off what Ctrl-C and SIGTERM do. Other threads than the first are never interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for missed in heard:
            signal.raise_signal(missed)
