from __future__ import annotations

from cutline.edge.generation.timing import Stopwatch


def test_parts_follow_each_other_without_a_gap_and_nobody_is_believed_more_than_there_was() -> None:
    now = [10.0]
    parts = Stopwatch(clock=lambda: now[0])
    now[0] = 10.5
    parts.lap("prepare")
    now[0] = 12.5
    parts.waited({"upload": 0.25, "queue": -1.0, "cloud": 0.75}, rest="link")
    now[0] = 13.0
    parts.waited({"upload": 0.25, "cloud": 9.0}, rest="link")
    now[0] = 13.125
    parts.lap("alone")
    assert parts.seconds == {"prepare": 0.5, "upload": 0.5, "queue": 0.0, "cloud": 1.0, "link": 1.0, "alone": 0.125}
    assert list(parts.seconds) == ["prepare", "upload", "queue", "cloud", "link", "alone"]
    assert sum(parts.seconds.values()) == now[0] - 10.0
