"""What of a journal a drafter learns from, and what is said of the rest."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal, files_in
from cutline.core.request import Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import InputError
from cutline.learning.comparison import quality_of
from cutline.learning.examples import Remembered, memory_of, read_examples
from cutline.models.bundle import Bundle

BUNDLE = Bundle.open(DRAFTER)
MANIFEST = BUNDLE.manifest


def journal_of(folder: Path, *entries: Escalation) -> Path:
    writing = EscalationJournal(folder, limit=1 << 24)
    for entry in entries:
        writing.put(entry)
    writing.close()
    return folder


def test_a_picture_is_learnt_from_or_compared_by(journal: Path, entries: list[Escalation]) -> None:
    found = read_examples(journal, None, MANIFEST)
    assert len(found.examples) == len(entries)
    sides = defaultdict(set)
    for one in found.examples:
        sides[one.images].add(one.held_out)
    assert {len(one) for one in sides.values()} == {1}
    assert 0.1 < len(found.held_out) / len(found.examples) < 0.35
    assert len(found.learnt) + len(found.held_out) == len(found.examples)
    assert found.tenants == {"camera1"}


def test_drawn_answers_are_learnt_as_text_and_not_compared_by(tmp_path: Path, entries: list[Escalation]) -> None:
    likely = tuple(((token, -0.5),) for token in entries[0].tokens)
    drawn = [
        msgspec.structs.replace(entries[0], likely=likely, sampling=sampling)
        for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(presence_penalty=1.0))
    ]
    found = read_examples(journal_of(tmp_path, *drawn), None, MANIFEST)
    assert sorted(bool(one.likely) for one in found.examples) == [False, False, True]
    assert all(one.plain for one in found.held_out)


def test_what_is_torn_another_s_or_unfit_is_counted(tmp_path: Path, entries: list[Escalation]) -> None:
    one = entries[0]
    unfit = [
        msgspec.structs.replace(one, images=()),
        msgspec.structs.replace(one, images=(b"no picture",)),
        msgspec.structs.replace(one, tokens=()),
        msgspec.structs.replace(one, tokens=(MANIFEST.decoder.vocabulary,)),
        msgspec.structs.replace(one, likely=(((1, -0.1),),)),
        msgspec.structs.replace(one, tokens=(1,) * MANIFEST.decoder.context),
    ]
    folder = journal_of(tmp_path, one, msgspec.structs.replace(one, target="f" * 64), *unfit, entries[1])
    torn = files_in(folder)[-1]
    os.truncate(torn.path, torn.size - 3)
    found = read_examples(folder, None, MANIFEST)
    assert (len(found.examples), found.torn, found.others, found.unfit) == (1, 1, 1, len(unfit))
    with pytest.raises(InputError, match="is empty"):
        read_examples(folder, None, MANIFEST, tenant="nobody")
    with pytest.raises(InputError, match=r"the 1 answers .* are of another target"):
        read_examples(journal_of(tmp_path / "b", msgspec.structs.replace(one, target="f" * 64)), None, MANIFEST)
    with pytest.raises(InputError, match="0 entries are torn, 1 do not fit"):
        read_examples(journal_of(tmp_path / "c", unfit[0]), None, MANIFEST)


def test_memory_is_the_given_answer_or_the_drafter_s_own() -> None:
    one = next(iter(requests(Split.CALIBRATION, 1, seed=5)))
    asked = Request.about(one.image, one.question.text)
    own, given = memory_of(BUNDLE, [Remembered(asked), Remembered(asked, "I see nothing.")], threads=1)
    quality = quality_of(BUNDLE, [own], threads=1)
    assert (quality.agreed, quality.foreseen) == (1.0, 1.0)
    assert given.answer[-1] in MANIFEST.stop_tokens
    assert given.answer != own.answer
    assert given.prompt == own.prompt
