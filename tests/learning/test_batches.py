"""What is learnt of a batch: the same as of each example by itself, and of the likeliest what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cutline.core.escalations.escalation import Escalation
from cutline.demo.bundles import DRAFTER
from cutline.learning.batches import batches_of, distillation_loss, memory_loss
from cutline.learning.examples import Example, pixels_of
from cutline.models.bundle import Bundle
from cutline.models.export.source import read_source

MANIFEST = Bundle.open(DRAFTER).manifest


def example(entry: Escalation, **more: object) -> Example:
    return Example(entry.prompt, entry.images, entry.tokens, **more)  # type: ignore[arg-type]


def test_examples_side_by_side_say_what_each_says_alone(entries: list[Escalation], folder: Path) -> None:
    model = read_source(folder, dtype=torch.float32).model
    some = [example(entry) for entry in entries[:5]]
    assert len({len(one.prompt) + len(one.answer) for one in some}) > 1, "some are padded"
    (together,) = batches_of(some, MANIFEST)
    alone = []
    for one in some:
        pixels = MANIFEST.family.as_given(pixels_of(one, MANIFEST))
        ids = torch.tensor([one.prompt + one.answer])
        with torch.inference_mode():
            given = {name: torch.from_numpy(array) for name, array in pixels.items()}
            alone.append(model(input_ids=ids, **given).logits[0, len(one.prompt) - 1 : -1])
    with torch.inference_mode():
        torch.testing.assert_close(together.logits(model), torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert together.tokens.tolist() == [token for one in some for token in one.answer]


def test_the_loss_is_cross_entropy_and_of_known_odds_theirs_too(entries: list[Escalation]) -> None:
    torch.manual_seed(0)
    plain = example(entries[0])
    count, vocabulary = len(plain.answer), MANIFEST.decoder.vocabulary
    logits = torch.randn(count, vocabulary, dtype=torch.float64, requires_grad=True)
    (batch,) = batches_of([plain], MANIFEST)
    said = functional.cross_entropy(logits, torch.tensor(plain.answer))
    assert distillation_loss(logits, batch).item() == pytest.approx(said.item())

    theirs = torch.randn(count, vocabulary, dtype=torch.float64).log_softmax(1)
    every = tuple(tuple(enumerate(row.tolist())) for row in theirs)
    (batch,) = batches_of([example(entries[0], likely=every)], MANIFEST)
    apart = functional.kl_div(logits.log_softmax(1), theirs, log_target=True, reduction="batchmean")
    entropy = -(theirs.exp() * theirs).sum() / count
    assert distillation_loss(logits, batch).item() == pytest.approx((said + apart + entropy).item(), rel=1e-5)

    few = tuple(tuple((int(token), math.log(0.3)) for token in row.topk(2).indices) for row in theirs)
    (batch,) = batches_of([example(entries[0], likely=few)], MANIFEST)
    ours = logits.softmax(1)
    expected = said
    for place, listed in enumerate(few):
        inside = torch.stack([ours[place, token] for token, _ in listed])
        expected = expected - (0.3 * inside.log().sum() + 0.4 * torch.log(1 - inside.sum())) / count
    assert distillation_loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_memory_costs_nothing_until_it_fades() -> None:
    before = torch.randn(3, 7)
    assert memory_loss(before.clone(), before).item() == pytest.approx(0.0, abs=1e-6)
    assert memory_loss(before + torch.randn(3, 7), before).item() > 0.01
