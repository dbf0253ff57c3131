"""The controller with workers that are made up: it sees to it that they are there."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from cutline.cloud.cluster import controller as module
from cutline.cloud.cluster.autoscaler import ScalingLimits
from cutline.cloud.cluster.controller import Controller
from cutline.cloud.cluster.directory import serve
from cutline.cloud.cluster.discovery import discovery
from cutline.cloud.cluster.members import Endpoints, Need, Node
from cutline.cloud.telemetry.metrics import shown
from cutline.errors import AccessDenied, WorkerUnavailable
from cutline.protos.channel.credentials import AgentKeys
from cutline.protos.channel.token_file import token_entry
from cutline.protos.directory import DirectoryClient, Standing
from cutline.protos.messages import Description

SECONDS = 10.0
WELL = Description(
    model="m",
    name="m",
    version="1",
    vision_layers=1,
    decoder_layers=1,
    context=10,
    sessions=0,
    max_sessions=4,
    start="image",
    end="end",
)


class Fake:
    """A worker that does as it is told, and remembers."""

    def __init__(self, node: Node, number: int, *, starts: bool) -> None:
        self.node = node
        self.address = f"{node.address}:{number}"
        self.described = WELL
        self.killed = self.stopped = False
        self.placed = asyncio.Event()
        self.placed.set()
        self.on_stop: Callable[[], None] = lambda: None
        self._starts = starts
        self._end = asyncio.Event()

    async def start(self) -> Endpoints:
        await self.placed.wait()
        if not self._starts:
            raise WorkerUnavailable("no bundle there")
        return Endpoints(self.address, f"{self.address}1")

    async def look(self, after: float) -> Description:
        try:
            await asyncio.wait_for(self._end.wait(), min(after, 0.02))
        except TimeoutError:
            return self.described
        raise WorkerUnavailable("it ended")

    async def stop(self) -> None:
        self.stopped = True
        self.on_stop()
        self.die()

    def die(self) -> None:
        self._end.set()

    async def kill(self) -> None:
        self.killed = True


class Machines:
    """Nodes, and every worker that was ever launched on them."""

    def __init__(self, count: int = 2) -> None:
        self.nodes = tuple(Node(f"n{index}", f"192.0.2.{index}", 2.0, 0.0) for index in range(count))
        self.launched: list[Fake] = []
        self.starts = self.places = True

    def launch(self, node: Node) -> Fake:
        self.launched.append(Fake(node, 1000 + len(self.launched), starts=self.starts))
        if not self.places:
            self.launched[-1].placed.clear()
        return self.launched[-1]

    def controller(self, least: int, most: int) -> Controller:
        limits = ScalingLimits(least=least, most=most, grow_after=0.05, shrink_after=0.05)
        return Controller(self.launch, lambda: self.nodes, limits=limits, need=Need(cpus=1.0), leave=0.1)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, run to its end."""

    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 (what it waits for is polled by the controller, too)
            await asyncio.sleep(0.01)


def ready(controller: Controller) -> set[str]:
    return {one.address for one in controller.listing().workers}


@in_a_loop
async def test_it_keeps_them_there() -> None:
    machines = Machines()
    async with machines.controller(2, 2) as controller:
        await until(lambda: len(ready(controller)) == 2)
        first, second = machines.launched
        assert {first.node.name, second.node.name} == {"n0", "n1"}
        version = controller.listing().version
        first.die()
        await until(lambda: first.killed and len(ready(controller)) == 2)
        assert ready(controller) == {second.address, machines.launched[2].address}
        assert controller.listing().version > version
        assert {one.name for one in controller.listing().workers} == {"worker-0", "worker-1"}
    assert all(one.killed for one in machines.launched)
    assert not first.stopped
    assert second.stopped


@in_a_loop
async def test_its_limits_may_change_while_it_runs() -> None:
    machines = Machines()
    async with machines.controller(1, 1) as controller:
        await until(lambda: len(ready(controller)) == 1)
        controller.limits = replace(controller.limits, least=2, most=2)
        await until(lambda: len(ready(controller)) == 2)
        controller.limits = replace(controller.limits, least=1, most=1)
        await until(lambda: len(ready(controller)) == 1)


@in_a_loop
async def test_what_never_starts_rests_longer_each_time_and_says_why() -> None:
    machines = Machines(1)
    machines.starts = False
    async with machines.controller(1, 1) as controller:
        await until(lambda: len(machines.launched) == 2)
        await until(lambda: controller.listing(everyone=True).workers[0].failures == 2)
        (one,) = controller.listing(everyone=True).workers
        assert one.standing is Standing.RESTING
        assert one.why == "no bundle there"
        assert ready(controller) == set()


@in_a_loop
async def test_no_room_is_no_failure() -> None:
    machines = Machines(1)
    async with machines.controller(3, 3) as controller:
        await until(lambda: len(ready(controller)) == 2)
        third = controller.listing(everyone=True).workers[2]
        assert (third.standing, third.failures, third.why) == (Standing.RESTING, 0, "no node has room for it")
        machines.nodes += (Node("n9", "192.0.2.9", 2.0, 0.0),)
        await until(lambda: len(ready(controller)) == 3)


@in_a_loop
async def test_it_grows_and_shrinks_and_who_drains_leaves_the_directory_first() -> None:
    machines = Machines()
    async with machines.controller(1, 2) as controller:
        await until(lambda: len(ready(controller)) == 1)
        machines.launched[0].described = replace(WELL, queue_seconds=1.0, sessions=2)
        await until(lambda: len(ready(controller)) == 2)
        first, second = machines.launched
        first.described = replace(WELL, sessions=1)
        await until(lambda: len(ready(controller)) == 1)
        assert ready(controller) == {first.address}  # the one with sessions stays
        before = second.stopped
        assert {one.standing for one in controller.listing(everyone=True).workers} == {"ready", "draining"}
        await until(lambda: second.killed)
        assert (before, second.stopped) == (False, True)
        await until(lambda: len(controller.listing(everyone=True).workers) == 1)


@in_a_loop
async def test_it_grows_no_further_than_there_is_room_and_shrinks_from_there() -> None:
    machines = Machines(1)  # with room for two
    async with machines.controller(1, 4) as controller:
        await until(lambda: len(ready(controller)) == 1)
        machines.launched[0].described = replace(WELL, queue_seconds=9.0, sessions=4)
        await until(lambda: len(ready(controller)) == 2)
        machines.launched[1].described = machines.launched[0].described
        await until(lambda: controller.listing().wanted == 3)
        await until(lambda: controller.listing().wanted == 2)
        assert len(controller.listing(everyone=True).workers) == 2
        for one in machines.launched:
            one.described = WELL
        await until(lambda: len(ready(controller)) == 1)


@in_a_loop
async def test_a_worker_that_was_told_to_drain_by_others_is_listed_no_more_and_replaced() -> None:
    machines = Machines()
    async with machines.controller(1, 1) as controller:
        await until(lambda: len(ready(controller)) == 1)
        machines.launched[0].described = replace(WELL, draining=True)
        await until(lambda: ready(controller) == {one.address for one in machines.launched[1:2]})
        machines.launched[0].die()
        await until(lambda: len(controller.listing(everyone=True).workers) == 1)


@in_a_loop
async def test_who_does_not_know_the_nodes_for_a_while_does_not_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    machines, answers = Machines(), iter([RuntimeError("the head node is away")])

    def nodes() -> tuple[Node, ...]:
        for error in answers:
            raise error
        return machines.nodes

    limits = ScalingLimits(least=1, most=1)
    async with Controller(machines.launch, nodes, limits=limits, need=Need(cpus=1.0), leave=0.0) as controller:
        await until(lambda: len(ready(controller)) == 1)
    assert "the head node is away" in caplog.text


@in_a_loop
async def test_agents_are_told_of_who_is_ready_and_operators_of_everyone() -> None:
    machines = Machines(1)
    async with machines.controller(3, 3) as controller, serve(controller, listen="127.0.0.1:0") as address:
        await until(lambda: len(ready(controller)) == 2)
        async with DirectoryClient(address) as directory:
            assert await directory.list() == controller.listing()
            assert await directory.list(model="m") == controller.listing()
            assert (await directory.list(model="another")).workers == ()
            everyone = await directory.list(everyone=True)
            assert [one.standing for one in everyone.workers] == ["ready", "ready", "resting"]
            assert everyone.wanted == 3


@in_a_loop
async def test_a_restart_replaces_one_worker_after_the_other_each_once_its_successor_is_ready() -> None:
    machines = Machines(2)  # with room for four
    async with machines.controller(2, 2) as controller:
        await until(lambda: len(ready(controller)) == 2)
        before, seen = tuple(machines.launched), list[tuple[int, int]]()
        for one in before:
            one.on_stop = lambda: seen.append(
                (len(ready(controller)), sum(not other.killed for other in machines.launched))
            )
        controller.restart()
        assert controller.listing().outdated == 2
        await until(lambda: controller.listing().outdated == 0)
        assert seen == [(2, 3), (2, 3)], "two are listed, and three run, whenever one is told to end"
        assert all(one.killed for one in before)
        assert ready(controller) == {one.address for one in machines.launched[2:]}
        assert len(machines.launched) == 4
        assert (controller.listing().wanted, len(controller.listing(everyone=True).workers)) == (2, 2)


@in_a_loop
async def test_a_restart_without_room_for_one_more_makes_it_first() -> None:
    machines = Machines(1)  # with room for two
    async with machines.controller(2, 2) as controller:
        await until(lambda: len(ready(controller)) == 2)
        before, running = tuple(machines.launched), list[int]()
        for one in before:
            one.on_stop = lambda: running.append(len(ready(controller)))
        controller.restart()
        await until(lambda: controller.listing().outdated == 0 and len(ready(controller)) == 2)
        assert running == [1, 1], "the other one goes on"
        assert all(one.killed for one in before)
        assert controller.listing().wanted == 2


@in_a_loop
async def test_a_restart_whose_new_workers_do_not_start_leaves_the_others_be() -> None:
    machines = Machines(2)
    async with machines.controller(2, 2) as controller:
        await until(lambda: len(ready(controller)) == 2)
        before, machines.starts = ready(controller), False
        controller.restart()
        await until(lambda: len(machines.launched) == 4)
        assert ready(controller) == before
        machines.starts = True
        await until(lambda: controller.listing().outdated == 0)
        assert not ready(controller) & before


@in_a_loop
async def test_a_restart_is_ordered_by_who_has_the_clusters_own_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("cluster", "own") + token_entry("agents", "another"))
    machines = Machines(1)
    operator = AgentKeys(token="own")
    async with (
        machines.controller(1, 1) as controller,
        serve(controller, listen="127.0.0.1:0", tokens=tokens, operator=operator) as address,
        DirectoryClient(address, AgentKeys(token="another")) as agent,
        DirectoryClient(address, operator) as directory,
    ):
        await until(lambda: len(ready(controller)) == 1)
        assert (await agent.list()).workers
        with pytest.raises(AccessDenied, match="may restart its workers"):
            await agent.restart()
        assert controller.listing().outdated == 0
        await directory.restart()
        assert (await directory.list()).outdated == 1


@in_a_loop
async def test_prometheus_is_told_where_the_workers_show_metrics() -> None:
    machines = Machines(1)
    async with machines.controller(2, 2) as controller:
        await until(lambda: len(ready(controller)) == 2)
        listing = functools.partial(controller.listing, everyone=True)
        with shown(discovery(listing), "127.0.0.1:0") as at:
            response = await asyncio.to_thread(urlopen, f"http://{at}/")
            with response:
                kind, told = response.headers["content-type"], json.load(response)
    assert kind == "application/json"
    assert [one["targets"] for one in told] == [[f"{one.address}1"] for one in machines.launched]
    assert [one["labels"]["worker"] for one in told] == ["worker-0", "worker-1"]
    assert all(isinstance(value, str) for one in told for value in one["labels"].values())


@in_a_loop
async def test_what_is_never_placed_holds_up_no_end() -> None:
    machines = Machines(1)
    async with asyncio.timeout(SECONDS):
        async with machines.controller(1, 2) as controller:
            await until(lambda: len(ready(controller)) == 1)
            machines.places = False
            controller.restart()
            await until(lambda: len(machines.launched) == 2)
        assert [(one.stopped, one.killed) for one in machines.launched] == [(True, True), (False, True)]
