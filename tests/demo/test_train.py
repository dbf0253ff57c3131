"""Training goes on where it was stopped, with the same steps as without the stop; its tokenizer is the bundles'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from cutline.demo import train
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.tokenizer import train_tokenizer
from cutline.demo.train import SEED, Course, Schedule, Stage
from cutline.demo.training import checkpoint


class Stopped(Exception):
    """In the middle of a step."""


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a stage, of few cards, kept one by one."""
    monkeypatch.setattr(train, "SCHEDULES", {"drafter": dict.fromkeys(Stage, Schedule(2, 1e-3))})
    monkeypatch.setattr(train, "KEPT", 1)
    monkeypatch.setattr(train, "CARDS", 4)


def test_the_recipe_makes_the_tokenizer_that_ships() -> None:
    trained = json.loads(train_tokenizer(SEED).to_str())
    for bundle in (TARGET, DRAFTER):
        assert json.loads((bundle / "tokenizer.json").read_text()) == trained


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_stopped_training_ends_as_one_that_ran_through(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(SEED)
    through = weights(Course("drafter", tokenizer, tmp_path / "through").run(Progress(disable=True)))

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
