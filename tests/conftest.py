"""Models that several rooms are tested with, and the haste that no property test is held to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cutline.models.bundle import Bundle
from cutline.models.encoders.bundle import EncoderBundle
from cutline.testing.comparison import small_target
from cutline.testing.encoders import exported
from cutline.testing.random_encoders import make_encoder

# Other work on the machine makes examples slow, not wrong. In CI, Hypothesis also draws the same ones each time.
settings.register_profile(
    "unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proof", action="store_true", help="run the tests that take a minute each, too: make proof")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--proof"):
        long = {one for one in items if one.get_closest_marker("proof") is not None}
        config.hook.pytest_deselected(items=list(long))
        items[:] = [one for one in items if one not in long]


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A target of Qwen2.5-VL's shape, reduced, with seeded weights."""
    return small_target("qwen2.5-vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, EncoderBundle]]:
    """The folder and the bundle of a small dual encoder of some kind, made once."""
    folder = tmp_path_factory.mktemp("encoders")

    @functools.cache
    def made(kind: str) -> tuple[Path, EncoderBundle]:
        return make_encoder(kind, folder / kind), exported(folder / kind, folder / f"{kind}-bundle")

    return made
