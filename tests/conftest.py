"""Models that several rooms are tested with."""

from __future__ import annotations

import pytest

from cutline.bench.parity import qwen25vl_small
from cutline.models.bundle import Bundle


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A target of Qwen2.5-VL's shape, reduced, with seeded weights."""
    return qwen25vl_small(tmp_path_factory.mktemp("qwen"))
