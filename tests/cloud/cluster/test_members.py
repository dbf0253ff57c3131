from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutline.cloud.cluster.members import (
    LONGEST_REST,
    STEADY_SECONDS,
    Endpoints,
    Member,
    Need,
    Node,
    due,
    ended,
    homeless,
    levelled,
    place,
    rest_seconds,
    started,
    updated,
)
from cutline.protos.directory import Standing
from cutline.protos.messages import Description

NODES = (Node("a", "192.0.2.1", 4.0, 1.0), Node("b", "192.0.2.2", 2.0, 0.0), Node("c", "192.0.2.3", 2.0, 2.0))
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


def serving(name: str, node: str = "a", sessions: int = 0) -> Member:
    return Member(name=name, standing=Standing.READY, since=0.0, node=node, described=replace(WELL, sessions=sessions))


def test_workers_spread_before_they_share() -> None:
    members: list[Member] = []
    for number in range(4):
        node = place(NODES, members, Need(cpus=2.0))
        assert node is not None
        members.append(serving(f"worker-{number}", node.name))
    assert sorted(member.node for member in members) == ["a", "a", "b", "c"]
    assert place(NODES, members, Need(cpus=2.0)) is None


def test_a_gpu_is_shared_as_far_as_it_goes() -> None:
    half = Need(cpus=0.5, gpus=0.5)
    members: list[Member] = []
    while (node := place(NODES, members, half)) is not None:
        members.append(serving(f"worker-{len(members)}", node.name))
    assert [[member.node for member in members].count(node.name) for node in NODES] == [2, 0, 4]


def test_who_died_somewhere_goes_elsewhere_if_there_is_room() -> None:
    assert place(NODES, [serving("worker-0", "b"), serving("worker-1", "c")], Need(cpus=1.0), avoid="a") == NODES[1]
    assert place(NODES[:1], [], Need(cpus=1.0), avoid="a") == NODES[0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 64.0), st.integers(0, 8)), max_size=6),
    st.floats(0.1, 8.0),
    st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
)
def test_no_node_gives_more_than_it_has_and_none_is_left_that_could(
    sizes: list[tuple[float, int]], cpus: float, gpus: float
) -> None:
    nodes = [Node(str(index), "", *size) for index, size in enumerate(sizes)]
    need = Need(cpus=cpus, gpus=gpus)
    members: list[Member] = []
    while (node := place(nodes, members, need)) is not None:
        members.append(serving(f"worker-{len(members)}", node.name))
    for node in nodes:
        count = sum(member.node == node.name for member in members)
        room = min(node.cpus / cpus, node.gpus / gpus if gpus else float("inf"))
        assert room - 1 - 1e-3 < count < room + 1e-3


def test_rests_grow_to_a_limit() -> None:
    rests = [rest_seconds(failures) for failures in range(1, 200)]
    assert rests[:4] == [0.5, 1.0, 2.0, 4.0]
    assert rests == sorted(rests)
    assert max(rests) == LONGEST_REST


def test_who_served_long_begins_with_a_short_rest_again() -> None:
    member = replace(serving("worker-0"), failures=7)
    late, soon = ended(member, "it died", STEADY_SECONDS + 1), ended(member, "it died", 1.0)
    assert late is not None
    assert soon is not None
    assert (late.failures, soon.failures) == (1, 8)
    assert late.until == STEADY_SECONDS + 1 + rest_seconds(1)


def test_the_least_useful_go_first() -> None:
    members = (
        serving("worker-0", sessions=3),
        serving("worker-1", sessions=1),
        Member(name="worker-2", standing=Standing.STARTING, since=0.0),
        Member(name="worker-3", standing=Standing.RESTING, since=0.0, failures=2),
    )
    left = {member.name: member.standing for member in levelled(members, 1, 5.0)}
    assert left == {"worker-0": "ready", "worker-1": "draining", "worker-2": "draining"}


def test_who_has_no_room_goes_before_who_rests_from_a_failure() -> None:
    failed = Member(name="worker-0", standing=Standing.RESTING, since=0.0, failures=2)
    left = levelled((failed, homeless(replace(failed, name="worker-1"), 1.0)), 1, 5.0)
    assert left == (failed,)
    assert not started(homeless(failed, 1.0), "a", 2.0).homeless


class Members(RuleBasedStateMachine):
    """Whatever happens to workers: names stay apart, and as many as are wanted are kept or on their way."""

    @initialize()
    def begin(self) -> None:
        self.now, self.wanted = 0.0, 0
        self.members: tuple[Member, ...] = ()

    def become(self, name: str, after: Member | None) -> None:
        kept = [after if one.name == name else one for one in self.members]
        self.members = tuple(one for one in kept if one is not None)

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(wanted=st.integers(0, 5))
    def want(self, wanted: int) -> None:
        self.wanted = wanted
        before = {member.name: member for member in self.members}
        self.members = levelled(self.members, wanted, self.now)
        for member in self.members:
            if member.standing is Standing.DRAINING and before[member.name].standing is not Standing.DRAINING:
                assert before[member.name].standing in (Standing.READY, Standing.STARTING)

    @rule()
    def start(self) -> None:
        for member in due(self.members, self.now):
            assert member.until <= self.now
            node = place(NODES, self.members, Need(cpus=1.0), avoid=member.node)
            self.become(
                member.name, homeless(member, self.now) if node is None else started(member, node.name, self.now)
            )

    @precondition(lambda self: any(one.standing is not Standing.RESTING for one in self.members))
    @rule(data=st.data(), leaves=st.booleans())
    def hear(self, data: st.DataObject, leaves: bool) -> None:
        member = data.draw(st.sampled_from([one for one in self.members if one.standing is not Standing.RESTING]))
        after = updated(member, Endpoints("192.0.2.1:1"), replace(WELL, draining=leaves), self.now)
        draining = leaves or member.standing is Standing.DRAINING
        assert after.standing is (Standing.DRAINING if draining else Standing.READY)
        self.become(member.name, after)

    @precondition(lambda self: any(one.standing is not Standing.RESTING for one in self.members))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from([one for one in self.members if one.standing is not Standing.RESTING]))
        after = ended(member, "it died", self.now)
        assert (after is None) == (member.standing is Standing.DRAINING)
        if after is not None:
            assert after.until > self.now
            assert after.endpoints.address == ""
        self.become(member.name, after)

    @invariant()
    def names_are_apart(self) -> None:
        assert len({member.name for member in self.members}) == len(self.members)

    @invariant()
    def as_many_as_wanted(self) -> None:
        level = levelled(self.members, self.wanted, self.now)
        assert sum(member.standing is not Standing.DRAINING for member in level) == self.wanted
        assert levelled(level, self.wanted, self.now) == level
        staying = [one for one in self.members if one.standing is Standing.DRAINING]
        assert all(one in level for one in staying)


TestMembers = Members.TestCase
