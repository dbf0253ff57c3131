"""What is kept of conversations changes how long the next ones take, and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutline.core.request import Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.inference import kv_cache, target_prefix
from cutline.edge.inference.drafter import Drafted, Drafter
from cutline.edge.inference.kv_cache import MAX_HISTORIES, keys_of
from cutline.edge.inference.target_prefix import TargetSpan
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import Bundle
from cutline.models.images import Pixels
from cutline.models.prompt import PromptBuilder
from cutline.testing.models.comparison import Whole, seeded_prompts

DRAFTS = Bundle.open(DRAFTER)
IMAGE, TOKENS = 3, 16  # of the seeded model: its image token, and how many an image has
IMAGES = [
    Pixels(np.random.default_rng(seed).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32), (0, 0)) for seed in range(3)
]
NAMES = [bytes([index]) * 32 for index in range(3)]
Talk = tuple[list[int], list[int]]  # a prompt, and which images are in it

pieces: st.SearchStrategy[Talk] = st.one_of(
    st.lists(st.integers(4, 9), min_size=1, max_size=4).map(lambda words: (words, [])),
    st.sampled_from(range(3)).map(lambda index: ([4, *[IMAGE] * TOKENS, 5], [index])),
)


@st.composite
def talks(draw: st.DrawFn) -> list[tuple[Talk, list[int], int]]:
    """Conversations that share beginnings: each with an answer to go on from, and how many tokens are asked for."""
    trunk: list[Talk] = draw(st.lists(pieces, min_size=1, max_size=3))
    found = []
    for _ in range(draw(st.integers(2, 6))):
        kept = draw(st.integers(0, len(trunk)))
        trunk = [*trunk[:kept], *draw(st.lists(pieces, max_size=2))][:4]
        prompt = [1, *(token for words, _ in trunk for token in words), 6]
        images = [index for _, inside in trunk for index in inside]
        answer = draw(st.lists(st.integers(4, 9), max_size=4))
        found.append(((prompt, images), answer, draw(st.integers(1, 5))))
    return found


@pytest.fixture(scope="module")
def drafter(bundle: Bundle) -> Drafter:
    return Drafter.open(bundle, threads=1)


def draft(
    drafter: Drafter, talk: Talk, answer: Sequence[int], count: int, *, named: bool, tenant: str = ""
) -> list[Drafted]:
    prompt, images = talk
    names = [NAMES[index] for index in images] if named else None
    drafting = drafter.converse(prompt, [IMAGES[index] for index in images], Sampling(), names=names, tenant=tenant)
    return list(islice(drafting.draft(answer, 8), count))


def check_alike(one: list[Drafted], other: list[Drafted]) -> None:
    assert [drafted.token for drafted in one] == [drafted.token for drafted in other]
    np.testing.assert_allclose(
        [drafted.probability for drafted in one], [drafted.probability for drafted in other], rtol=1e-3, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(talks=talks())
def test_a_conversation_is_as_if_it_were_the_first(drafter: Drafter, talks: list[tuple[Talk, list[int], int]]) -> None:
    for talk, answer, count in talks:
        check_alike(draft(drafter, talk, answer, count, named=True), draft(drafter, talk, answer, count, named=False))


def test_conversations_in_several_threads_stay_apart(drafter: Drafter) -> None:
    head = [1, 4, *[IMAGE] * TOKENS, 5]
    asked = [(([*head, *range(6, 7 + seed % 5)], [seed % 2]), [7, 8][: seed % 3], 5) for seed in range(12)]
    expected = [draft(drafter, *one, named=False) for one in asked]
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda one: draft(drafter, *one, named=True), asked))
        for ours, theirs in zip(found, expected, strict=True):
            check_alike(ours, theirs)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles of each run of a tower, and the rows of each of a decoder, as negative numbers."""
    found: list[int] = []
    tower, extend = VisionSpan.__call__, kv_cache.History.extend

    def counted(self: VisionSpan, pixels: NDArray[np.float32], grids: Any) -> NDArray[np.float32]:
        found.append(len(pixels))
        return tower(self, pixels, grids)

    def extended(self: kv_cache.History, rows: NDArray[np.float32], *given: Any, **options: Any) -> NDArray[np.float32]:
        found.append(-len(rows))
        return extend(self, rows, *given, **options)

    monkeypatch.setattr(VisionSpan, "__call__", counted)
    monkeypatch.setattr(kv_cache.History, "extend", extended)
    return found


def test_the_second_question_about_an_image_runs_neither_tower_nor_image(bundle: Bundle, runs: list[int]) -> None:
    drafter = Drafter.open(bundle, threads=1)
    head = [1, 4, *[IMAGE] * TOKENS, 5]
    first = draft(drafter, (head, [0]), (), 3, named=True)
    assert runs[:2] == [1, -len(head)]
    runs.clear()
    # Another turn: the answer, of which the last token was never fed, and more.
    said = [one.token for one in first]
    draft(drafter, ([*head, *said, 7, 8], [0]), (), 1, named=True)
    assert runs == [-3]
    runs.clear()
    draft(drafter, ([*head, 9, 9], [0]), (), 1, named=True)
    assert runs == [-2]
    runs.clear()
    draft(drafter, ([*head, 9, 9], [1]), (), 1, named=True)  # another image, though all tokens are the same
    assert runs == [1, -len(head) - 2]
    runs.clear()
    draft(drafter, ([1, 8, 8, *[IMAGE] * TOKENS, 9], [0]), (), 1, named=True)  # a known image somewhere else
    assert runs == [-len(head) - 1]


@pytest.mark.threat("caches")
def test_what_one_tenant_asked_is_run_anew_for_another(bundle: Bundle, runs: list[int]) -> None:
    drafter = Drafter.open(bundle, threads=1)
    words = [1, *range(4, 24)]
    for tenant, expected in (
        ("one", -len(words)),
        ("other", -len(words)),
        ("one", -1),
        ("other", -1),
        ("", -len(words)),
    ):
        runs.clear()
        draft(drafter, (words, []), (), 1, named=True, tenant=tenant)
        assert runs == [expected], tenant


@pytest.mark.threat("caches")
def test_an_image_has_another_name_for_each_tenant() -> None:
    preparer = Preparer(DRAFTS.manifest, PromptBuilder.open(DRAFTS), None, planned=False)
    file = next(requests(Split.EVALUATION, 1, seed=3)).image
    asked = [Request.about(file, "What?", tenant=tenant) for tenant in ("", "one", "other", "one")]
    names = [preparer.prepare(one).names for one in asked]
    assert names[1] == names[3]
    assert len(set(names)) == 3


def test_a_conversation_in_use_is_nobody_elses(bundle: Bundle, runs: list[int]) -> None:
    drafter = Drafter.open(bundle, threads=1)
    prompt = [1, 4, *[IMAGE] * TOKENS, 5]
    whole = draft(drafter, (prompt, [0]), (), 5, named=False)
    one = drafter.converse(prompt, IMAGES[:1], Sampling(), names=NAMES[:1])
    begun = one.draft((), 8)
    found = [next(begun)]
    runs.clear()
    draft(drafter, ([*prompt, 9], [0]), (), 4, named=True)
    assert runs[0] == -len(prompt) - 1
    check_alike([*found, *islice(begun, 4)], whole)


def test_only_so_many_are_kept(bundle: Bundle, runs: list[int]) -> None:
    drafter = Drafter.open(bundle, threads=1)
    heads = [[1, *[word] * 12] for word in range(4, 4 + MAX_HISTORIES + 1)]
    for head in heads:
        draft(drafter, (head, []), (), 1, named=True)
    gc.collect()
    runs.clear()
    for head in reversed(heads):
        draft(drafter, ([*head, 30], []), (), 1, named=True)
    assert runs == [-1] * MAX_HISTORIES + [-14]


def test_a_short_beginning_does_not_cost_another_conversation_its_state(bundle: Bundle, runs: list[int]) -> None:
    drafter = Drafter.open(bundle, threads=1)
    draft(drafter, ([1, *[7] * 12], []), (), 1, named=True)
    draft(drafter, ([1, 7, 7, 8, 8, 8], []), (), 1, named=True)
    runs.clear()
    draft(drafter, ([1, *[7] * 12, 9], []), (), 1, named=True)
    assert runs == [-1]


@pytest.mark.parametrize("images", [[], [0], [0, 1], [1, 0, 1]])
def test_several_images_are_drafted_from_as_in_transformers(
    drafter: Drafter, reference: Any, images: list[int]
) -> None:
    prompt = [1, *(token for index in images for token in (20 + index, *[IMAGE] * TOKENS, 30)), 40, 41]
    answer = [50, 61, 72]
    given = drafter.manifest.family.as_given([IMAGES[index] for index in images])
    with torch.inference_mode():
        expected = reference(
            input_ids=torch.tensor([[*prompt, *answer]]),
            **{name: torch.from_numpy(array) for name, array in given.items()},
        ).logits[0, len(prompt) - 1 :]
    for names in (None, [NAMES[index] for index in images]):
        logits = drafter.converse(prompt, [IMAGES[index] for index in images], Sampling(), names=names).logits(answer)
        np.testing.assert_allclose(logits, expected.numpy(), atol=2e-3)


@pytest.mark.parametrize("cut", ["decoder.0", "decoder.3", "head"])
def test_what_crosses_is_the_same_whatever_is_kept(
    qwen: Bundle, cut: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of different grids, whose tokens stand in a plane, and words before, between and behind them."""
    monkeypatch.setattr(target_prefix, "PREFILL", 100)
    prompt = seeded_prompts(qwen.manifest)[1]
    ids, token = prompt.ids, qwen.manifest.image_token
    last = len(ids) - ids[::-1].index(token)
    span, states = TargetSpan.open(qwen, cut, threads=1), Whole(qwen).run(prompt)[0]
    names = [b"one", b"two"]
    deep = cut != "decoder.0"

    def opened(prompt_: Sequence[int], draft: Sequence[int] = ()) -> NDArray[np.float32]:
        return np.concatenate(list(span.converse(prompt_, prompt.images, names=names).opening(draft)))

    def close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    close(opened(ids), states[cut])
    assert [size for size in runs if size > 0] == [len(image.values) for image in prompt.images]
    other = (*ids[:last], 20, 21, 22, 23)
    expected = np.concatenate(list(span.converse(other, prompt.images).opening(())))
    runs.clear()
    close(opened(other), expected)
    assert runs == ([-4] if deep else [])
    runs.clear()
    close(opened(ids[: len(ids) - 2], ids[len(ids) - 2 :]), states[cut])  # the end of the prompt as a draft
    assert runs == ([last - len(ids)] if deep else [])


def test_a_boundary_is_opened_again_without_computing_it_again(qwen: Bundle, runs: list[int]) -> None:
    prompt = seeded_prompts(qwen.manifest)[1]
    states, _ = Whole(qwen).run(prompt)
    answered = len(prompt.ids) - 3
    crossing = TargetSpan.open(qwen, "decoder.2", threads=1).converse(prompt.ids[:answered], prompt.images)
    list(crossing.opening((99, 98)))
    crossing.again(0, prompt.ids[answered : answered + 2])
    runs.clear()
    rows = np.concatenate(list(crossing.opening(prompt.ids[answered:])))
    assert runs == [-1]
    assert np.abs(rows - states["decoder.2"]).max() <= 1e-4 * np.abs(rows).max()


def test_the_keys_of_images_are_their_rows() -> None:
    assert keys_of([1, 3, 3, 5, 3], 3, [("a", 2), ("b", 1)]) == [1, ("a", 0), ("a", 1), 5, ("b", 0)]
