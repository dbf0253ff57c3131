"""Training goes on where it was stopped, with the same steps as without the stop; its tokenizer is the bundles'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from tokenizers import Tokenizer

from cutline.demo import train
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.tokenizer import train_tokenizer
from cutline.demo.train import SEED, Course, Schedule, Stage
from cutline.learning import checkpoint


class Stopped(Exception):
    """In the middle of a step."""


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    """Two steps a stage, of few cards, kept one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SCHEDULES", {"drafter": dict.fromkeys(Stage, Schedule(2, 1e-3))})
        patch.setattr(train, "KEPT", 1)
        patch.setattr(train, "CARDS", 4)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SEED)


@pytest.fixture(scope="module")
def through(short: None, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that a training without a stop ends with."""
    return weights(
        Course("drafter", tokenizer, tmp_path_factory.mktemp("through") / "state").run(Progress(disable=True))
    )


def test_the_recipe_makes_the_tokenizer_that_ships(tokenizer: Tokenizer) -> None:
    trained = json.loads(tokenizer.to_str())
    for bundle in (TARGET, DRAFTER):
        assert json.loads((bundle / "tokenizer.json").read_text()) == trained


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_stopped_training_ends_as_one_that_ran_through(
    steps: int,
    tokenizer: Tokenizer,
    through: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = steps
    whole = Course._loss

    def until(course: Course, stage: Stage) -> torch.Tensor:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        return whole(course, stage)

    monkeypatch.setattr(Course, "_loss", until)
    with pytest.raises(Stopped):
        Course("drafter", tokenizer, tmp_path / "stopped").run(Progress(disable=True))
    monkeypatch.setattr(Course, "_loss", whole)
    place = checkpoint.place_of(tmp_path / "stopped")
    assert place is not None
    assert place.steps == (steps - 1) % 2 + 1
    on = weights(Course("drafter", tokenizer, tmp_path / "stopped").run(Progress(disable=True)))
    assert on.keys() == through.keys()
    for name, tensor in through.items():
        assert torch.equal(on[name], tensor), name


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    place = checkpoint.CoursePlace(stage="answers", steps=1, random={})
    checkpoint.save(tmp_path / "state", place, {"model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="another model"):
        checkpoint.restore(tmp_path / "state", {"model": torch.nn.Conv1d(2, 2, 2)})
    with pytest.raises(ValueError, match="another model"):
        checkpoint.restore(tmp_path / "state", {"model": torch.nn.LayerNorm(2), "more": torch.nn.Linear(2, 2)})
