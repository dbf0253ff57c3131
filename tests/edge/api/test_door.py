"""Which connection goes where an agent has too many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from cutline.edge.api import server
from cutline.edge.api.access.limits import HttpLimits


@dataclass(eq=False)
class Connection:
    """A connection of `host`, as the door knows it."""

    host: str
    busy: bool = False
    gone: list[str] = field(default_factory=list)

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return self.host, 1

    def abort(self) -> None:
        self.gone.append(self.host)


@pytest.mark.threat("connections")
def test_the_oldest_idle_one_of_the_address_that_has_most_makes_room() -> None:
    door: Any = server._Door(HttpLimits(connections=5))
    lone, many = Connection("192.0.2.9"), [Connection("192.0.2.1", busy=number == 0) for number in range(6)]
    for one in (lone, *many):
        door.enter(one, one)
    assert not lone.gone
    assert [bool(one.gone) for one in many] == [False, True, True, False, False, False]
    other = Connection("192.0.2.10")
    door.enter(other, other)
    assert not lone.gone
    assert not other.gone
    assert many[3].gone
