from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.measurement.rates import median_seconds
from cutline.devices.measurement.workload import one_tile, row_counts
from cutline.edge.diagnostics import benchmark
from cutline.edge.diagnostics.benchmark import drafter_table, image_seconds, rising, target_table
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import Bundle


def heard(_: str) -> None:
    """Nobody listens."""


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=12))
def test_times_are_made_to_rise_as_another_library_does(times: list[float]) -> None:
    assert rising(times) == pytest.approx(isotonic_regression(np.array(times)).tolist(), rel=1e-6, abs=1e-9)


def test_a_layer_is_what_the_longer_span_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that is known: the better of two times counts, and a step back is shared with the layer before."""
    bundle = Bundle.open(TARGET)
    known = {"vision.0": 1.0, "vision.1": 3.0, "vision.2": 8.0, "vision.3": 7.0, "connector": 11.0, "decoder.0": 11.5}
    looked_at: list[str] = []

    def opened(_: Bundle, cut: str, **__: object) -> str:
        looked_at.append(cut)
        return cut

    def seconds(work: object, *_: object, **__: object) -> float:
        late = looked_at.count(str(work)) == 2
        return known.get(str(work), 0.5) + (0.0 if late else 0.25)

    monkeypatch.setattr(VisionSpan, "open", opened)
    monkeypatch.setattr(benchmark, "median_seconds", seconds)
    table = target_table(bundle, threads=1, seconds=1.0, on_step=heard)
    found = {name: samples[0][1] for name, samples in table.layers.items() if not name.startswith("decoder.")}
    assert found == {
        "image": 1.0,
        "vision.0": 2.0,
        "vision.1": 4.5,
        "vision.2": 0.0,
        "vision.3": 3.5,
        "connector": 0.5,
    }


def test_a_targets_layers_add_up_to_about_the_span_that_they_are() -> None:
    bundle = Bundle.open(TARGET)
    tile = one_tile(bundle.manifest)
    span = VisionSpan.open(bundle, "decoder.0", threads=1)
    line = bundle.manifest.line
    table = target_table(bundle, threads=1, seconds=1.0, on_step=heard)
    whole = median_seconds(span, tile.values, [tile.grid], budget=0.3)
    summed = sum(table.layers[name][0][1] for name in line.layers[: line.place("decoder.0")])
    assert 0.2 < summed / whole < 5  # other programs may have been busy during one of the two
    assert table.model == bundle.manifest.identity
    assert table.runtime == "edge"
    assert table.layers["vision.0"][0][0] == bundle.manifest.family.patches(tile.grid)
    assert all(seconds >= 0 for samples in table.layers.values() for _, seconds in samples)


def test_a_targets_decoder_layers_are_measured_at_every_number_of_rows() -> None:
    bundle = Bundle.open(TARGET)
    table = target_table(bundle, threads=1, seconds=1.0, on_step=heard)
    counts, behind = row_counts(bundle.manifest.decoder.context)
    assert table.context == behind
    for index in range(bundle.manifest.line.decoder):
        assert tuple(rows for rows, _ in table.layers[f"decoder.{index}"]) == counts
    assert "head" not in table.layers  # which a device never runs for a target
    one, prompt = (sum(table.layers[f"decoder.{index}"][at][1] for index in range(4)) for at in (0, -1))
    assert one < prompt < one * counts[-1]  # a row of many is cheaper than a row alone


def test_a_drafter_is_measured() -> None:
    bundle = Bundle.open(DRAFTER)
    table = drafter_table(bundle, threads=1, seconds=0.8, on_step=heard)
    assert table.model == bundle.manifest.identity
    assert table.precision == bundle.manifest.precision
    assert 1e-6 < table.token_seconds < 1.0
    assert 1e-6 < table.vision_seconds < 10.0
    assert [rows for rows, _ in table.prefill] == sorted(rows for rows, _ in table.prefill)
    assert table.prefill[-1][1] < table.prefill[-1][0] * table.token_seconds


def test_a_larger_image_takes_longer_to_prepare() -> None:
    from io import BytesIO

    from PIL import Image

    small = BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    manifest = Bundle.open(DRAFTER).manifest
    (large, shrunk), (little, _) = image_seconds(manifest), image_seconds(manifest, small.getvalue())
    assert 0 < little < large
    assert shrunk > 0
