"""Every span of the target on the device: its boundary is what transformers has there, however it was computed."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import SmolVLMForConditionalGeneration

from cutline.core.conversation import question
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.inference import target_prefix
from cutline.edge.inference.target_prefix import MAX_SPANS, Crossing, LoadedSpans, TargetSpan, device_cuts
from cutline.edge.inference.token_merging import merge_runs, shorten
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError, InputError, PromptError
from cutline.models.bundle import PREFIX_WEIGHTS, Bundle, span_file, write_manifest
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

BUNDLE = Bundle.open(TARGET)
MANIFEST = BUNDLE.manifest
LINE = MANIFEST.line
REQUEST = next(one for one in requests(Split.EVALUATION, 1, seed=3) if one.question.kind == "describe")
PIXELS = MANIFEST.family.preprocess(decode_image(REQUEST.image))
PROMPT = PromptBuilder.open(BUNDLE).build([question(REQUEST.question.text)], [PIXELS.grid]).ids
ANSWER = (50, 61, 72, MANIFEST.image_token, 83, 94, 105, 51, 62)  # as the model would never say it


@pytest.fixture(scope="module")
def states() -> dict[str, NDArray[np.float32]]:
    """What transformers' whole model has at every cut, of the prompt and the answer in one go."""
    model: Any = SmolVLMForConditionalGeneration.from_pretrained(TARGET).eval()
    decoder = model.model.text_model
    found: list[torch.Tensor] = []
    for layer in (*decoder.layers, decoder.norm):
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
    with torch.inference_mode():
        vision = model.model.vision_model(pixel_values=torch.from_numpy(PIXELS.values), output_hidden_states=True)
        (image,) = model.get_image_features(torch.from_numpy(PIXELS.values)[None]).pooler_output
        rows = decoder.embed_tokens(torch.tensor([PROMPT + ANSWER]))
        rows[0, : len(PROMPT)][torch.tensor(PROMPT) == MANIFEST.image_token] = image
        decoder(inputs_embeds=rows, use_cache=False)
    shallow = dict(zip(LINE.image_cuts[1:-1], [*(one[0] for one in vision.hidden_states)], strict=True))
    deep = dict(zip(LINE.deep_cuts, found[1:], strict=True))
    return {cut: state.numpy() for cut, state in (shallow | {"decoder.0": image} | deep).items()}


def close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def crossing(cut: str) -> Crossing:
    return TargetSpan.open(BUNDLE, cut, threads=1).converse(PROMPT, [PIXELS])


def opened(cut: str, draft: tuple[int, ...] = ()) -> tuple[Crossing, NDArray[np.float32]]:
    begun = crossing(cut)
    return begun, np.concatenate(list(begun.opening(draft)))


def test_every_cut_can_be_made() -> None:
    assert device_cuts(MANIFEST) == LINE.layers[1:]


@pytest.mark.parametrize("cut", LINE.image_cuts[1:])
def test_before_the_decoder_the_image_crosses(cut: str, states: dict[str, NDArray[np.float32]]) -> None:
    begun, boundary = opened(cut, ANSWER)
    assert not begun.deep
    close(boundary, states[cut])


@pytest.mark.parametrize("prefill", [1, 7, 128])
@pytest.mark.parametrize("cut", LINE.deep_cuts)
def test_inside_the_decoder_every_token_crosses(
    cut: str, prefill: int, states: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_prefix, "PREFILL", prefill)
    begun = crossing(cut)
    parts = list(begun.opening(ANSWER))
    assert begun.deep
    assert {len(part) for part in parts[:-1]} <= {prefill}
    close(np.concatenate(parts), states[cut])
    # And once more from the middle, as after a draft that was wrong there.
    close(begun.again(2, ANSWER[2:5]), states[cut][len(PROMPT) + 2 : len(PROMPT) + 5])


@settings(deadline=None, max_examples=30)
@given(
    cut=st.sampled_from(LINE.deep_cuts),
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 6), st.lists(st.integers(10, 99), max_size=4)), max_size=8
    ),
)
def test_what_was_forgotten_leaves_no_trace(
    cut: str, states: dict[str, NDArray[np.float32]], steps: list[tuple[int, int, list[int]]]
) -> None:
    """Right tokens, wrong ones behind them, and back to any place that was right."""
    begun, _ = opened(cut)
    right = 0  # answer tokens whose rows are known to be right
    for back, forward, wrong in steps:
        start = min(back, right)
        end = min(start + forward, len(ANSWER))
        if end == start:
            continue
        rows = begun.again(start, (*ANSWER[start:end], *wrong))
        close(rows[: end - start], states[cut][len(PROMPT) + start : len(PROMPT) + end])
        right = end


def test_conversations_do_not_disturb_each_other(states: dict[str, NDArray[np.float32]]) -> None:
    span = TargetSpan.open(BUNDLE, "decoder.2", threads=1)
    one, other = (span.converse(PROMPT, [PIXELS]) for _ in range(2))
    list(one.opening(()))
    list(other.opening((99, 98)))
    for index, token in enumerate(ANSWER):
        other.again(0, (97 - index,))
        place = len(PROMPT) + index
        close(one.again(index, (token,)), states["decoder.2"][place : place + 1])


def test_the_context_ends_somewhere() -> None:
    begun, _ = opened("decoder.1")
    with pytest.raises(PromptError, match="do not fit"):
        begun.again(0, [20] * (MANIFEST.decoder.context - len(PROMPT) + 1))


@pytest.mark.parametrize("cut", ["decoder.0", *LINE.deep_cuts])
def test_merged_image_tokens_shorten_what_crosses(cut: str) -> None:
    span = TargetSpan.open(BUNDLE, cut, threads=1)
    image = VisionSpan.open(BUNDLE, "decoder.0", threads=1)(PIXELS.values, [PIXELS.grid])
    short = shorten(PROMPT, MANIFEST.image_token, 0.5)
    merged = merge_runs(image, PROMPT, MANIFEST.image_token, 0.5)
    begun = span.converse(PROMPT, [PIXELS], keep=0.5)
    (rows,) = begun.opening(())
    if cut == "decoder.0":
        assert np.array_equal(rows, merged)
        return
    assert len(short) == len(rows) == len(PROMPT) - 8
    # The words before the image do not know of it, those behind it do.
    whole = np.concatenate(list(span.converse(PROMPT, [PIXELS]).opening(())))
    before = PROMPT.index(MANIFEST.image_token)
    np.testing.assert_allclose(rows[:before], whole[:before], atol=1e-4)
    assert np.abs(rows[-1] - whole[-1]).max() > 1e-3


@pytest.mark.parametrize("cut", ["vision.9", "decoder.4", "decoder", "", "image", "end", "head\n"])
def test_a_cut_that_is_none_is_named_with_those_there_are(cut: str) -> None:
    with pytest.raises(InputError, match=r"no cut .*; cuts: image, vision\.0, .*decoder\.0, .*head"):
        TargetSpan.open(BUNDLE, cut, threads=1)


@pytest.mark.parametrize("missing", ["vision.1", "decoder.0", "decoder.2", "head"])
def test_a_cut_that_the_bundle_lacks_is_named_with_those_it_has(missing: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TARGET, tmp_path / "target"))
    start = "decoder.0" if missing in LINE.deep_cuts else "image"
    (folder / span_file(missing, start)).unlink()
    write_manifest(folder, MANIFEST)
    bundle = Bundle.open(folder)
    with pytest.raises(InputError, match=f"no graphs for the cut {missing}, only for vision"):
        TargetSpan.open(bundle, missing, threads=1)
    assert missing not in device_cuts(bundle.manifest)
    # Without the tower's last graph there is nothing to begin the decoder with.
    assert ("head" in device_cuts(bundle.manifest)) == (missing not in ("decoder.0", "head"))


def test_a_drafter_is_not_cut() -> None:
    with pytest.raises(BundleError, match="only a target is cut"):
        TargetSpan.open(Bundle.open(DRAFTER), "decoder.0", threads=1)


def test_a_manifest_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TARGET, tmp_path / "target"))
    write_manifest(folder, msgspec.structs.replace(MANIFEST, line=msgspec.structs.replace(LINE, decoder=3)))
    with pytest.raises(BundleError, match="manifest"):
        TargetSpan.open(Bundle.open(folder), "head", threads=1)


def test_a_device_needs_no_weights_of_the_workers(tmp_path: Path, states: dict[str, NDArray[np.float32]]) -> None:
    folder = Path(shutil.copytree(TARGET, tmp_path / "target"))
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(folder)
    bundle = Bundle.open(folder, "device")
    assert bundle.manifest.identity == MANIFEST.identity
    assert PREFIX_WEIGHTS in bundle.names
    with pytest.raises(BundleError, match="without model"):
        bundle.file("model.safetensors")
    begun = TargetSpan.open(bundle, "decoder.3", threads=1).converse(PROMPT, [PIXELS])
    close(np.concatenate(list(begun.opening(ANSWER))), states["decoder.3"])
    PromptBuilder.open(bundle)
    (folder / "decoder.0-to-decoder.3.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="hash differs"):
        Bundle.open(folder, "device")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cuts whose spans were loaded, each slowly and without its graphs."""
    found: list[str] = []

    def load(_: Bundle, cut: str, **__: object) -> object:
        found.append(cut)
        time.sleep(0.02)
        return SimpleNamespace(forget=lambda: None)

    monkeypatch.setattr(TargetSpan, "open", load)
    return found


def test_the_spans_used_last_stay_loaded(loads: list[str]) -> None:
    held = LoadedSpans(BUNDLE, threads=1)
    first, *others = BUNDLE.manifest.line.layers[1:]
    assert len(others) > MAX_SPANS
    for cut in others:
        for one in (cut, first):
            held.open(one)
            assert one in held.cuts
            assert len(held.cuts) <= MAX_SPANS
    assert loads == [others[0], first, *others[1:]]
    assert held.cuts == {first, *others[1 - MAX_SPANS :]}


def test_a_span_is_loaded_once_however_many_ask_for_it_at_once(loads: list[str]) -> None:
    held = LoadedSpans(BUNDLE, threads=1)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(held.open, ["decoder.0"] * 6))
    assert loads == ["decoder.0"]
    assert len(set(map(id, found))) == 1
