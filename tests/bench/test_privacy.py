"""The parts of the privacy benchmark that learn nothing: what they say against closed forms."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cutline.bench.inversion import Painter, learn, paint
from cutline.bench.privacy import Reading, Sight, Trial, epsilon, noisy, through, write
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.errors import BundleError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prices import Leak, open_prices

READING: Any = SimpleNamespace(shares=lambda pictures: {"read": float(pictures.mean())})


def spent(mean: float, epsilon_: float) -> float:
    """The delta of a Gaussian mechanism whose sensitivity is `mean` deviations, exactly (Balle and Wang, 2018)."""
    below = NormalDist().cdf
    return below(mean / 2 - epsilon_ / mean) - math.exp(epsilon_) * below(-mean / 2 - epsilon_ / mean)


@pytest.mark.parametrize(("share", "width", "rows"), [(40.0, 64, 1), (100.0, 128, 16), (300.0, 128, 64)])
def test_epsilon_is_enough_and_not_much_too_large(share: float, width: int, rows: int) -> None:
    # Every row of length L may turn round, to a distance of 2 L; the noise on a value is a share of L / sqrt(width).
    mean = math.sqrt(rows * 2**2) / (share / math.sqrt(width))
    found = epsilon(share, width, rows=rows)
    assert spent(mean, found) <= 1e-5
    assert spent(mean, found / 1.5) > 1e-5


def test_noise_that_leaves_answers_right_has_no_useful_epsilon() -> None:
    assert epsilon(1.0, 128, rows=16) > 1000


def test_what_a_painter_recovers_is_the_share_of_the_variance() -> None:
    dice = np.random.default_rng(1)
    truth = dice.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    blind = np.full((16, 16, 3), 128.0)
    trial = Trial(truth, blind, READING)
    itself = trial.of(truth)
    assert (itself.recovered, itself.psnr, itself.ssim) == (1.0, math.inf, 1.0)
    assert itself.read == {"read": truth.mean()}
    assert trial.of(np.full_like(truth, 128)).recovered == 0.0
    assert trial.of(255 - truth).recovered == 0.0, "worse than a blind guess is no better than one"
    half = ((truth.astype(float) + blind) / 2).round().astype(np.uint8)
    found = trial.of(half)
    assert found.recovered == pytest.approx(0.75, abs=0.01)
    assert found.psnr == pytest.approx(20 * math.log10(255 / np.sqrt(((half - truth.astype(float)) ** 2).mean())))


def test_a_row_is_a_square_of_the_picture() -> None:
    torch.manual_seed(0)
    rows, pictures = torch.randn(3, 16, 8), torch.rand(3, 3, 32, 32)
    painter = Painter(rows, pictures).eval()
    painter.look = nn.Identity()  # type: ignore[assignment]
    before = painter(rows)
    assert before.shape == (3, 3, 32, 32)
    rows[1, 6] += 1.0  # of four rows of four squares, the third of the second
    changed = (painter(rows) != before).any(dim=1)
    expected = torch.zeros(3, 32, 32, dtype=torch.bool)
    expected[1, 8:16, 16:24] = True
    assert torch.equal(changed, expected)
    assert paint(painter, rows).min() >= 0.0


def test_a_picture_times_a_matrix_is_recovered_without_learning() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(300, 3, 8, 8)
    squares = pictures.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(300, 4, 48)
    rows = squares @ torch.randn(48, 64) + torch.randn(4, 64)
    painter = Painter(rows[:200], pictures[:200])
    assert float((paint(painter, rows[200:]) - pictures[200:]).abs().max()) < 0.05


def test_what_the_rows_hold_is_learnt_and_what_they_do_not_is_not() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(300, 3, 4, 4)
    squares = pictures.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(300, 4, 12)
    error = []
    for rows in (squares @ torch.randn(12, 16), torch.randn(300, 4, 16)):
        painter = learn(rows[:200], pictures[:200], steps=15, seed=1, advance=lambda: None)
        error.append(float((paint(painter, rows[200:]) - pictures[200:]).square().mean()))
    assert error[0] < 0.5 / 12, "half of the variance of what is uniform between 0 and 1"
    assert error[1] > 0.9 / 12


def test_rows_go_through_a_format_and_noise_is_as_strong_as_said() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 50, 400) * 7
    assert through(rows, Wire.FLOAT32) is rows
    assert 0 < float((through(rows, Wire.INT8) - rows).abs().max()) <= float(rows.abs().max()) / 254 + 1e-5
    drawn = (noisy(rows, 0.5) - rows) / (0.5 * rows.square().mean(dim=-1, keepdim=True).sqrt())
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)


def test_leaks_are_written_beside_the_prices(tmp_path: Path) -> None:
    path = Path(shutil.copytree(TARGET, tmp_path / "target"))
    before = open_prices(Bundle.open(path))
    leaks = [Leak(cut="decoder.0", wire=Wire.INT8, recovered=0.5)]
    write(Bundle.open(path), leaks)
    after = open_prices(Bundle.open(path))
    assert before is not None
    assert after is not None
    assert (after.prices, after.leaks) == (before.prices, tuple(leaks))
    with pytest.raises(BundleError):
        write(Bundle.open(DRAFTER), leaks)


def test_noise_reaches_every_question_and_nothing_when_it_is_over() -> None:
    """The question's length is not that of the prompt that boundaries are taken with."""
    bundle = Bundle.open(TARGET)
    reference = Reference(bundle)
    sight = Sight(bundle, reference)
    asked = [one for one in requests(Split.EVALUATION, 3, seed=17) if one.question.kind in ("read", "colour")]
    pictures = np.stack([np.asarray(decode_image(image)) for image in dict.fromkeys(one.image for one in asked)])
    boundaries = sight.boundaries(pictures)
    assert {cut: rows.shape[1] for cut, rows in boundaries.items()} == {
        cut: 64 if cut in ("vision.0", "vision.1", "vision.2", "vision.3", "connector") else 16 for cut in sight.takes
    }
    reading = Reading(reference, asked)
    right = reading.shares(pictures)
    for cut in ("vision.2", "decoder.0"):
        torch.manual_seed(0)
        with sight.blurred(cut, 30.0):
            lost = [reference.text(reference.answer(one.image, one.question.text)) for one in asked]
        plain = [reference.text(reference.answer(one.image, one.question.text)) for one in asked]
        assert sum(one != other for one, other in zip(lost, plain, strict=True)) > 0.6 * len(asked)
    assert reading.shares(pictures) == right
