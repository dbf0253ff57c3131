"""The drafter's decoder against transformers' own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError, PromptError
from cutline.models.bundle import Bundle, Precision, write_manifest

IMAGE = 3
TOLERANCE = 1e-4
PIXELS = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
IDS = [1, 40, 41, *[IMAGE] * 16, 50, 61, 72, 83, 2, 94, 105]


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Decoder:
    return Decoder.open(bundle, threads=1)


@pytest.fixture(scope="module")
def prompt(bundle: Bundle, decoder: Decoder) -> NDArray[np.float32]:
    """Rows of a prompt with an image in it."""
    rows = decoder.embed(IDS)
    rows[np.array(IDS) == IMAGE] = VisionSpan.open(bundle, "decoder.0", threads=1)(PIXELS[0].numpy(), [(0, 0)])
    return rows


@pytest.fixture(scope="module")
def expected(reference: Any) -> NDArray[np.float32]:
    """transformers' logits of that prompt, from pixels and token ids."""
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([IDS]), pixel_values=PIXELS).logits[0]
    return np.asarray(logits.numpy())


def test_a_prompt_with_an_image_has_transformers_logits(
    decoder: Decoder, prompt: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    state = decoder.new_state()
    logits = state.extend(prompt, last_only=False)
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert state.position == len(IDS)


def test_last_only_is_the_last_row(decoder: Decoder, prompt: NDArray[np.float32]) -> None:
    logits = decoder.new_state().extend(prompt, last_only=True)
    assert logits.shape == (1, decoder.spec.vocabulary)
    np.testing.assert_allclose(logits, decoder.new_state().extend(prompt, last_only=False)[-1:], atol=TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.booleans()), max_size=12))
def test_chunks_and_rollbacks_do_not_change_the_logits(
    decoder: Decoder,
    prompt: NDArray[np.float32],
    expected: NDArray[np.float32],
    steps: list[tuple[int, int, bool]],
) -> None:
    """Whatever was appended and forgotten before, a row's logits are those of the whole prompt."""
    state = decoder.new_state()
    for grow, forget, last_only in steps:
        end = min(state.position + grow, len(prompt))
        if end > state.position:
            wanted = slice(end - 1, end) if last_only else slice(state.position, end)
            logits = state.extend(prompt[state.position : end], last_only=last_only)
            np.testing.assert_allclose(logits, expected[wanted], atol=TOLERANCE)
        junk = decoder.embed([199] * forget)
        if forget:
            state.extend(junk, last_only=True)
        state.rollback(max(0, end - forget))


def test_32_greedy_tokens_are_those_of_generate(decoder: Decoder, prompt: NDArray[np.float32], reference: Any) -> None:
    with torch.inference_mode():
        ids = torch.tensor([IDS])
        answer = reference.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=PIXELS,
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
        )[0, len(IDS) :].tolist()
    state = decoder.new_state()
    tokens = [int(state.extend(prompt, last_only=True).argmax())]
    while len(tokens) < 32:
        tokens.append(int(state.extend(decoder.embed(tokens[-1:]), last_only=True).argmax()))
    assert tokens == answer
    assert len(set(tokens)) > 3


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.1), ("int4", 0.5)])
def test_quantized_decoders_are_close(
    quantized: Callable[[Precision], Bundle],
    prompt: NDArray[np.float32],
    expected: NDArray[np.float32],
    precision: Precision,
    error: float,
) -> None:
    state = Decoder.open(quantized(precision), threads=1).new_state()
    logits = np.concatenate(
        [state.extend(chunk, last_only=False) for chunk in (prompt[:20], prompt[20:21], prompt[21:])]
    )
    spread = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    assert 1e-4 < spread < error


def test_conversations_on_one_decoder_do_not_disturb_each_other(
    decoder: Decoder, prompt: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    def converse(chunk: int) -> NDArray[np.float32]:
        state = decoder.new_state()
        parts = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
        return np.concatenate([state.extend(part, last_only=False) for part in parts])

    with ThreadPoolExecutor(4) as threads:
        for logits in threads.map(converse, [1, 2, 3, 5] * 3):
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_logits_stay_what_they_were(decoder: Decoder, prompt: NDArray[np.float32]) -> None:
    state = decoder.new_state()
    first = state.extend(prompt[:1], last_only=True)
    kept = first.copy()
    state.extend(prompt[1:2], last_only=True)
    assert np.array_equal(first, kept)


def test_the_context_can_be_filled_and_not_overrun(decoder: Decoder, prompt: NDArray[np.float32]) -> None:
    context = decoder.spec.context
    rows = np.resize(prompt, (context, decoder.spec.width))
    state = decoder.new_state()
    state.extend(rows[:-1], last_only=True)
    with pytest.raises(PromptError, match=f"{context + 1} tokens do not fit .* {context}"):
        state.extend(rows[:2], last_only=True)
    assert state.position == context - 1
    last = state.extend(rows[-1:], last_only=True)
    np.testing.assert_allclose(last, decoder.new_state().extend(rows, last_only=True), atol=TOLERANCE)


def test_mistakes_of_the_caller_are_refused(decoder: Decoder) -> None:
    state = decoder.new_state()
    with pytest.raises(ValueError, match="cannot roll back to 1"):
        state.rollback(1)
    with pytest.raises(ValueError, match="not all in"):
        decoder.embed([5, -1])
    with pytest.raises(ValueError, match="not all in"):
        decoder.embed([200])
    for rows in (np.zeros((0, 64), np.float32), np.zeros((2, 1), np.float32)):
        with pytest.raises(ValueError, match="are not"):
            state.extend(rows, last_only=True)


def test_a_manifest_of_other_sizes_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for change in ({"layers": 3}, {"width": 32}, {"vocabulary": 100}):
        folder = tmp_path / "-".join(change)
        shutil.copytree(bundle.path, folder)
        sizes = msgspec.structs.replace(bundle.manifest.decoder, **change)
        write_manifest(folder, msgspec.structs.replace(bundle.manifest, decoder=sizes))
        with pytest.raises(BundleError, match="manifest"):
            Decoder.open(Bundle.open(folder), threads=1)


def test_embeddings_that_do_not_read_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\xff" * 16, (2).to_bytes(8, "little") + b"{}")):
        folder = tmp_path / str(number)
        shutil.copytree(bundle.path, folder)
        (folder / "embeddings.safetensors").write_bytes(content)
        write_manifest(folder, bundle.manifest)
        with pytest.raises(BundleError, match="embeddings"):
            Decoder.open(Bundle.open(folder), threads=1)
