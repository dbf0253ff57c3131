"""What is said of a pair before anything of it runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.models.bundle import Bundle
from cutline.models.pairs.fit import fit
from cutline.models.pairs.pair import Shared, served_model, shared_in
from cutline.testing.models.pairs import renumbered, unlike

OURS, THEIRS = Bundle.open(DRAFTER), Bundle.open(TARGET)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A target of other tokens."""
    return renumbered(THEIRS, tmp_path_factory.mktemp("fit") / "target")


def changed(bundle: Bundle, **changes: object) -> Bundle:
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, **changes), bundle.part)


def test_a_pair_that_reads_the_same_prompts() -> None:
    found = fit(OURS, THEIRS)
    assert (found.shared, found.why, found.runs) == (Shared(tokens=True, template=True, images=True), None, True)


def test_a_pair_of_other_tokens(other: Bundle, tmp_path: Path) -> None:
    found = fit(OURS, other)
    assert (found.shared.tokens, found.shared.template, found.shared.images) == (False, True, True)
    assert f"export it again with --target {other.path}" in (found.why or "")
    made = unlike(OURS, other, tmp_path / "drafter")
    assert fit(made, other).runs
    assert fit(made, other).shared == shared_in(made) == served_model(made).shared


def test_a_drafter_knows_what_it_shares_by_its_files_alone(
    other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = unlike(OURS, other, tmp_path / "drafter")

    def read(*_: object) -> None:
        raise AssertionError("no tokenizer is needed")

    monkeypatch.setattr("cutline.models.vocabulary.Vocabulary.read", read)
    assert not shared_in(made).tokens
    assert shared_in(OURS).prompt


@pytest.mark.parametrize(
    ("drafter", "target", "said"),
    [
        (OURS, OURS, "--role target"),
        (THEIRS, THEIRS, "--role drafter"),
        (changed(OURS, target=None), THEIRS, "made for no target"),
        (changed(OURS, target="0" * 64), THEIRS, "made for another target"),
        (
            changed(OURS, decoder=msgspec.structs.replace(OURS.manifest.decoder, context=64)),
            THEIRS,
            "a drafter that holds as many",
        ),
    ],
    ids=["no target", "no drafter", "for none", "for another", "too short"],
)
def test_why_a_pair_cannot_run(drafter: Bundle, target: Bundle, said: str) -> None:
    found = fit(drafter, target)
    assert not found.runs
    assert said in (found.why or "")
