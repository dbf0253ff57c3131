from __future__ import annotations

import datetime
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.devices.toml import to_toml

text = st.text(max_size=20)
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=6))
def test_what_is_written_reads_back(table: dict[str, object]) -> None:
    """Against Python's own reader, whatever the nesting."""
    assert tomllib.loads(to_toml(table)) == table


def test_a_figure_stands_in_one_line_and_none_is_left_out() -> None:
    table = {
        "memory": {"value": 8.0, "unit": "GB", "document": None},
        "free": None,
        "compute": {"fp32": {"value": 1.5}},
    }
    assert to_toml(table) == 'memory = { value = 8.0, unit = "GB" }\n\n[compute]\nfp32 = { value = 1.5 }\n'


def test_tables_in_a_list_have_a_head_each() -> None:
    table = {"tables": [{"layers": {"vision.0": [[64, 0.5]]}, "date": datetime.date(2026, 5, 3)}, {}]}
    assert to_toml(table) == (
        '[[tables]]\ndate = 2026-05-03\n\n[tables.layers]\n"vision.0" = [[64, 0.5]]\n\n[[tables]]\n'
    )
    assert tomllib.loads(to_toml(table)) == table


def test_what_toml_has_no_word_for_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="bytes"):
        to_toml({"data": b"x"})
