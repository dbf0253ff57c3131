from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from cutline.bench.drafter_folder import write_folder
from cutline.bench.shift import SHIFTS
from cutline.core.conversation import question
from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

CARDS, RNG = 30, np.random.default_rng(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder of the demo's drafter."""
    made = tmp_path_factory.mktemp("drafter") / "folder"
    write_folder(made)
    return made


@pytest.fixture(scope="session")
def entries() -> list[Escalation]:
    """Questions about turned cards, with the answers that a target without a fault would give."""
    bundle, found = Bundle.open(DRAFTER), []
    prompts, manifest = PromptBuilder.open(bundle), bundle.manifest
    for number, one in enumerate(requests(Split.CALIBRATION, CARDS, seed=1)):
        file = io.BytesIO()
        SHIFTS["turned by 15 degrees"](decode_image(one.image), RNG).save(file, "PNG")
        message = question(one.question.text)
        grid = manifest.family.preprocess(decode_image(file.getvalue())).grid
        found.append(
            Escalation(
                time=float(number),
                tenant="camera1",
                target=manifest.target or "",
                prompt=prompts.build([message], [grid]).ids,
                tokens=(*prompts.vocabulary.encode_plain(one.question.answer), manifest.stop_tokens[0]),
                images=(file.getvalue(),),
                messages=(message,),
            )
        )
    return found


@pytest.fixture(scope="session")
def journal(entries: list[Escalation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of them."""
    made = tmp_path_factory.mktemp("journal")
    writing = EscalationJournal(made, limit=1 << 24)
    for entry in entries:
        writing.put(entry)
    writing.close()
    return made
