"""Models that several rooms are tested with, and the haste that no property test is held to."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from torch.onnx._internal.exporter._registration import ONNXRegistry

from cutline.models.bundle import Bundle
from cutline.models.encoders.bundle import EncoderBundle
from cutline.testing.models.comparison import small_target, tool_pair
from cutline.testing.models.encoders import exported
from cutline.testing.models.random_encoders import make_encoder

pytest.register_assert_rewrite("cutline.testing.worker", "cutline.testing.together")

# Other work on the machine makes examples slow, not wrong. In CI, Hypothesis also draws the same ones each time.
settings.register_profile(
    "unhurried",
    settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("proof", settings.get_profile("unhurried"), max_examples=500)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "run the tests that take a minute each, too, and all rounds of others: make proof"
    parser.addoption("--proof", action="store_true", help=words)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--proof"):
        settings.load_profile("proof")


def pytest_collection(session: pytest.Session) -> None:
    gc.disable()  # nothing of what is imported goes away again: looking for it takes a fifth of the time


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--proof"):
        long = {one for one in items if one.get_closest_marker("proof") is not None}
        config.hook.pytest_deselected(items=list(long))
        items[:] = [one for one in items if one not in long]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds a test makes that is marked as `sampled`."""
    few, many = request.node.get_closest_marker("sampled").args
    return int(many if request.config.getoption("--proof") else few)


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Folders that are made once for all of pytest's processes: by their name, and by what fills them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder lies in that of the whole run
        base = base.parent

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a test left behind that failed while it filled it
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """Have torch put together once what it can export, and not for each graph: that is a sixth of an export's time."""
    made: Callable[..., ONNXRegistry] = ONNXRegistry.from_torchlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(made)))
        yield


@pytest.fixture(scope="session")
def targets(shared: Shared) -> Callable[[str], Bundle]:
    """The small target of a family by its name, a key of SMALL, with seeded weights."""
    return lambda name: Bundle.open(shared(name, functools.partial(small_target, name)) / "bundle")


@pytest.fixture(scope="session")
def qwen(targets: Callable[[str], Bundle]) -> Bundle:
    """A target of Qwen2.5-VL's shape, reduced, with seeded weights."""
    return targets("qwen2.5-vl")


@pytest.fixture(scope="session")
def tools_folder(shared: Shared) -> Path:
    """The folder of a target that knows tools, and of its drafter."""
    return shared("tools", tool_pair)


@pytest.fixture(scope="session")
def encoders(shared: Shared) -> Callable[[str], tuple[Path, EncoderBundle]]:
    """The folder and the bundle of a small dual encoder of some kind."""

    def made(kind: str) -> tuple[Path, EncoderBundle]:
        def fill(folder: Path) -> None:
            exported(make_encoder(kind, folder / kind), folder / "bundle")

        folder = shared(kind, fill)
        return folder / kind, EncoderBundle.open(folder / "bundle")

    return made
