"""A cache of what was used last holds what a plain list of it would."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from cutline.core.lru_cache import LruCache


@given(
    room=st.integers(1, 6),
    steps=st.lists(st.tuples(st.sampled_from("gpd"), st.integers(0, 4), st.integers(1, 7)), max_size=40),
)
def test_the_values_used_last_are_held(room: int, steps: list[tuple[str, int, int]]) -> None:
    """Against a plain list of them."""
    held: LruCache[int, int] = LruCache(room)
    model: OrderedDict[int, int] = OrderedDict()
    for what, key, size in steps:
        if what == "g":
            assert held.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        elif what == "d":
            held.drop(lambda one, least=key: one >= least)  # type: ignore[misc]
            model = OrderedDict((one, size) for one, size in model.items() if one < key)
        else:
            held.put(key, size, size)
            model.pop(key, None)
            if size <= room:
                model[key] = size
            while sum(model.values()) > room:
                model.popitem(last=False)
    assert {key: held.get(key) for key in range(5)} == {key: model.get(key) for key in range(5)}
