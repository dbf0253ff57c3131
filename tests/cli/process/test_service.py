"""What a service manager hears: readiness, reloads and the end, as systemd's sd_notify(3) has it."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutline.cli.process.service import VARIABLE, Service

Start = Callable[..., Any]
RELOADING = re.compile(r"RELOADING=1\nMONOTONIC_USEC=([0-9]+)")


class Manager:
    """A service manager that hears what it is told."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> str:
        """The next message."""
        return self._socket.recv(4096).decode()

    def hears_nothing(self) -> bool:
        """Whether no message waits."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return not readable

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "user@1") if request.param == "file" else f"@cutline-{os.getpid()}"
    manager = Manager(address)
    monkeypatch.setenv(VARIABLE, address)
    yield manager
    manager.close()


def test_it_hears_of_a_reload_only_once_the_command_serves(manager: Manager) -> None:
    before, service = time.monotonic_ns() // 1000, Service()
    assert VARIABLE not in os.environ, "a process that this one starts would speak for it"
    with service.reloading():
        pass
    assert manager.hears_nothing()
    service.ready()
    assert manager.heard() == "READY=1"
    with service.reloading():
        begun = RELOADING.fullmatch(manager.heard())
        assert begun is not None
        assert before <= int(begun[1]) <= time.monotonic_ns() // 1000
        assert manager.hears_nothing(), "it is not over"
    assert manager.heard() == "READY=1"
    service.stopping()
    assert manager.heard() == "STOPPING=1"


def test_a_reload_that_fails_is_over_as_well(manager: Manager) -> None:
    service = Service()
    service.ready()
    with pytest.raises(ZeroDivisionError), service.reloading():
        raise ZeroDivisionError
    assert [manager.heard()[:9] for _ in range(3)] == ["READY=1", "RELOADING", "READY=1"]


def test_one_that_is_gone_is_no_fault(manager: Manager) -> None:
    service = Service()
    manager.close()
    service.ready()
    with service.reloading():
        service.stopping()


@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_an_agent_says_when_it_listens_reads_its_settings_and_ends(
    start: Start, manager: Manager, tmp_path: Path
) -> None:
    settings = tmp_path / "edge.toml"
    settings.write_text('listen = "127.0.0.1:0"\ninsecure = true\nrequests = 3\n')
    agent = start("edge", "--config", settings)
    assert manager.heard() == "READY=1"
    agent.address()
    agent.signal(signal.SIGHUP)
    assert RELOADING.fullmatch(manager.heard())
    assert manager.heard() == "READY=1"
    agent.signal(signal.SIGTERM)
    assert manager.heard() == "STOPPING=1"
    assert agent.finish().code == 0
    assert manager.hears_nothing()
