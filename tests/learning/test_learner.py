"""A drafter learns: a better one takes its place with word of whose answers it learnt, and no other one ever does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal, files_in
from cutline.core.escalations.learnt import learnt_from
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.errors import InputError, ModelMismatch, NotBetter
from cutline.learning import distillation
from cutline.learning.comparison import Comparison, Quality, quality_of
from cutline.learning.distillation import Distillation, DistillationPlan
from cutline.learning.examples import Example, read_examples
from cutline.learning.learner import JournalSource, Learner, LearningProgress
from cutline.models.bundle import Bundle, copy_bundle
from cutline.models.export.make import ExportProgress
from cutline.models.export.source import read_source
from cutline.models.prompt import PromptBuilder
from cutline.testing.models.pairs import renumbered, unlike

OLD, SERVED = Bundle.open(DRAFTER), Bundle.open(TARGET)
PLAN = DistillationPlan(epochs=4)


def quality(foreseen: float) -> Quality:
    return Quality(questions=30, agreed=0.5, foreseen=foreseen, kept=0.0)


@pytest.mark.proof
def test_a_drafter_learns_what_its_target_says_and_says_it_of_pictures_that_it_never_saw(
    folder: Path, entries: list[Escalation], tmp_path: Path
) -> None:
    said = (*PromptBuilder.open(OLD).vocabulary.encode_plain("It is too dark to read."), OLD.manifest.stop_tokens[0])
    writing = EscalationJournal(tmp_path / "journal", limit=1 << 24)
    for entry in entries:
        writing.put(msgspec.structs.replace(entry, tokens=said))
    writing.close()
    told = list[LearningProgress | ExportProgress]()
    learning = Learner(OLD, SERVED, folder, plan=DistillationPlan(epochs=8), tell=told.append)
    made = learning.learn(JournalSource(folder=tmp_path / "journal"), tmp_path / "better")
    examples = read_examples(tmp_path / "journal", None, OLD.manifest)
    before, after = (quality_of(one, examples.held_out, threads=1) for one in (OLD, Bundle.open(tmp_path / "better")))
    assert after.foreseen > before.foreseen + 0.2
    assert (made.comparison.before, made.comparison.after) == (before, after)
    assert {one.part for one in told if isinstance(one, LearningProgress)} == {"learning", "comparing"}


@pytest.mark.usefixtures("untaught")
def test_a_better_drafter_takes_its_place_and_says_whose_answers_it_learnt(
    folder: Path, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = Comparison(before=quality(0.5), after=quality(0.6))
    monkeypatch.setattr(Learner, "_compared", lambda self, made, held_out, memory: better)
    shutil.copytree(journal, kept := tmp_path / "journal")
    out = tmp_path / "better"
    made = Learner(OLD, SERVED, folder).learn(JournalSource(folder=kept), out)
    bundle, examples = Bundle.open(out), read_examples(journal, None, OLD.manifest)
    assert bundle.manifest.identity == made.identity
    assert bundle.manifest.origin is not None
    learnt = bundle.manifest.origin.learnt
    assert learnt is not None
    assert learnt.tenants == made.tenants == ("camera1",)
    assert learnt.drafter == OLD.manifest.identity
    assert learnt.answers == made.learnt == len(examples.learnt)
    (record,) = learnt_from(kept)
    assert (record.bundle, record.identity, record.tenants) == (str(out), made.identity, ("camera1",))
    assert not list(tmp_path.glob(".*")), "nothing is left of the work"


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning that changes nothing, and takes no time."""

    def exported(self: Learner, work: Path) -> Bundle:
        return copy_bundle(OLD, work / "bundle")

    monkeypatch.setattr(Learner, "_teach", lambda self, examples, memory, work, inputs: None)
    monkeypatch.setattr(Learner, "_exported", exported)


@pytest.mark.usefixtures("untaught")
def test_a_drafter_that_is_not_better_is_refused_and_nothing_is_left(
    folder: Path, journal: Path, tmp_path: Path
) -> None:
    before = sorted(journal.iterdir())
    with pytest.raises(NotBetter, match=r"is not better: it foresees [\d.]+% of the target's tokens, and the old one"):
        Learner(OLD, SERVED, folder, plan=PLAN).learn(JournalSource(folder=journal), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert sorted(journal.iterdir()) == before


@pytest.mark.usefixtures("untaught")
def test_what_cannot_be_learnt_is_said_in_a_line_and_nothing_is_left(
    folder: Path, entries: list[Escalation], journal: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="is there already"):
        Learner(OLD, SERVED, folder).learn(JournalSource(folder=journal), tmp_path / "taken")
    other = tmp_path / "other"
    writing = EscalationJournal(other, limit=1 << 20)
    writing.put(msgspec.structs.replace(entries[0], target="a" * 64))
    writing.put(msgspec.structs.replace(entries[0], tenant="camera2"))
    writing.close()
    for source, said in (
        (JournalSource(folder=other, tenant="camera1"), "are of another target"),
        (JournalSource(folder=other, tenant="camera2"), r"[01] answers to compare by are too few"),
        (JournalSource(folder=tmp_path / "none"), "no journal at"),
        (JournalSource(folder=journal, tenant="nobody"), "is empty"),
    ):
        with pytest.raises(InputError, match=said):
            Learner(OLD, SERVED, folder).learn(source, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["other", "taken"]


def test_what_was_learnt_of_other_answers_is_no_beginning(
    folder: Path, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of those that were deleted since."""
    found = list[bool]()

    def stopped(self: Learner, examples: object, memory: object, work: Path, inputs: str) -> None:
        found.append((work / "additions").exists() and (work / "folder").exists())
        (work / "additions").touch()
        (work / "folder").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "_teach", stopped)
    shutil.copytree(journal, kept := tmp_path / "journal")

    def attempt(plan: DistillationPlan = PLAN) -> bool:
        with pytest.raises(KeyboardInterrupt):
            Learner(OLD, SERVED, folder, plan=plan).learn(JournalSource(folder=kept), tmp_path / "out")
        return found[-1]

    assert [attempt(), attempt()] == [False, True]
    files_in(kept)[0].path.unlink()
    assert [attempt(), attempt()] == [False, True]
    assert not attempt(DistillationPlan(epochs=1))


def test_a_folder_of_another_shape_and_an_unlike_drafter_are_refused(
    folder: Path, journal: Path, tmp_path: Path
) -> None:
    other_words = renumbered(SERVED, tmp_path / "target")
    with pytest.raises(InputError, match="cannot learn so: the drafter has its own"):
        Learner(unlike(OLD, other_words, tmp_path / "drafter"), other_words, folder)
    with pytest.raises(ModelMismatch, match="drafts for another target"):
        Learner(OLD, OLD, folder)
    other = tmp_path / "folder"
    shutil.copytree(folder, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(
        config.replace('"max_position_embeddings": 512', '"max_position_embeddings": 256')
    )
    with pytest.raises(InputError, match="holds a model of another shape"):
        Learner(OLD, SERVED, other).learn(JournalSource(folder=journal), tmp_path / "out")


@pytest.mark.parametrize(
    ("before", "after", "memory", "said"),
    [
        (quality(0.5), quality(0.51), None, None),
        (quality(0.5), quality(0.5), None, "it foresees 50.0%"),
        (quality(0.5), quality(0.9), (quality(0.9), quality(0.895)), None),
        (quality(0.5), quality(0.9), (quality(0.9), quality(0.88)), "2.0% fewer of the tokens"),
    ],
)
def test_what_is_refused(
    before: Quality, after: Quality, memory: tuple[Quality, Quality] | None, said: str | None
) -> None:
    first, second = memory or (None, None)
    why = Comparison(before=before, after=after, memory_before=first, memory_after=second).refusal
    assert why is None if said is None else said in (why or "")


def taught(
    folder: Path, examples: Sequence[Example], state: Path, told: Callable[[int, float], object] = lambda *_: None
) -> dict[str, Any]:
    model = read_source(folder, dtype=torch.float32).model
    plan = DistillationPlan(epochs=2, batch=4)
    learning = Distillation(model, OLD.manifest, plan, state=state, work="work")
    made = learning.run(examples[:8], examples[8:12], told=told)
    return dict(made.state_dict())


def test_what_was_stopped_goes_on_as_if_it_had_not_been(
    folder: Path, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "KEPT", 2)
    examples = read_examples(journal, None, OLD.manifest).examples
    whole = taught(folder, examples, tmp_path / "whole")

    def stop(done: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(folder, examples, tmp_path / "stopped", stop)
    steps = list[int]()
    again = taught(folder, examples, tmp_path / "stopped", lambda done, loss: steps.append(done))
    assert steps == [3, 4], "those that were kept are not done again"
    assert whole.keys() == again.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, msg=name)
    before = read_source(folder, dtype=torch.float32).model.state_dict()
    assert any(not torch.equal(before[name], whole[name]) for name in before)
