"""Scores of right answers: by examples of their authors, and against second implementations of their formulas."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cutline.errors import InputError
from cutline.evaluation.captions import Cider, bleu, bleu_counts
from cutline.evaluation.scores import iou, score_named, vqa

WORDS = "a the cat dog sat on mat , big red . 3 runs it's e.g. up-to 3.5".split()  # noqa: SIM905


def corpus(count: int, seed: int = 0) -> list[tuple[str, tuple[str, ...]]]:
    """Texts of ordinary words with one to three references, which share most of them."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        base = list(rng.choice(WORDS, rng.integers(4, 12)))
        others = tuple(
            " ".join(word if rng.random() < 0.8 else str(rng.choice(WORDS)) for word in base)
            for _ in range(rng.integers(1, 4))
        )
        made.append((" ".join(word for word in base if rng.random() < 0.9) or "a", others))
    return made


def of_corpus(texts: list[tuple[str, tuple[str, ...]]]) -> float:
    return bleu(np.sum([bleu_counts(text, references) for text, references in texts], axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_its_formula(seed: int) -> None:
    """Papineni et al. 2002, without punctuation, which a tokenizer takes apart."""
    texts = [
        (text.replace(",", "").replace(".", ""), tuple(one.replace(",", "").replace(".", "") for one in references))
        for text, references in corpus(30, seed)
    ]

    def grams(text: str, size: int) -> Counter[str]:
        words = text.split()
        return Counter(" ".join(words[at : at + size]) for at in range(len(words) - size + 1))

    logs = []
    for size in (1, 2, 3, 4):
        clipped = total = 0
        for text, references in texts:
            for gram, count in grams(text, size).items():
                clipped += min(count, max(grams(one, size)[gram] for one in references))
                total += count
        logs.append(math.log(clipped / total))
    long = sum(len(text.split()) for text, _ in texts)
    nearest = sum(
        min((abs(len(one.split()) - len(text.split())), len(one.split())) for one in references)[1]
        for text, references in texts
    )
    expected = min(1.0, math.exp(1 - nearest / long)) * math.exp(sum(logs) / 4)
    assert of_corpus(texts) == pytest.approx(expected, abs=1e-9)


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    for seed in range(20):
        texts = corpus(1 + seed, seed)
        most = max(len(references) for _, references in texts)
        streams = [[(*references, *[None] * most)[at] for _, references in texts] for at in range(most)]
        expected = sacrebleu.corpus_bleu([text for text, _ in texts], streams).score / 100
        assert of_corpus(texts) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_that_of_its_formula(seed: int) -> None:
    """CIDEr-D of Vedantam et al. 2015, in vectors over all runs of words."""
    texts = [("a cat", ("a cat on a mat", "the dog")), *corpus(20, seed)]
    texts = [(text.replace(",", "").replace(".", "").replace("-", ""), references) for text, references in texts]
    texts = [
        (text, tuple(one.replace(",", "").replace(".", "").replace("-", "") for one in references))
        for text, references in texts
    ]
    found = Cider(references for _, references in texts)

    def grams(text: str, size: int) -> list[str]:
        words = text.split()
        return [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]

    for text, references in texts:
        expected = 0.0
        for size in (1, 2, 3, 4):
            every = sorted({gram for _, some in texts for one in (*some, text) for gram in grams(one, size)})
            seen = [{gram for one in some for gram in grams(one, size)} for _, some in texts]
            documents = np.array([sum(gram in some for some in seen) for gram in every])
            rarity = np.log(len(texts)) - np.log(np.maximum(1, documents))
            counts = [Counter(grams(said, size)) for said in (text, *references)]
            ours, *others = (np.array([some[gram] for gram in every]) * rarity for some in counts)
            for one, theirs in zip(references, others, strict=True):
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                alike = np.minimum(ours, theirs) @ theirs / norm if norm else 0.0
                apart = len(grams(text, 2)) - len(grams(one, 2))
                expected += alike * math.exp(-(apart**2) / 72) / len(references) / 4
        assert found.score(text, references) == pytest.approx(10 * expected, abs=1e-6)


def test_vqa_leaves_one_out() -> None:
    """The mean over all nine of ten, as its authors have it."""
    for said in range(11):
        answers = ["The cat!"] * said + [f"dog {index}" for index in range(10 - said)]
        mean = np.mean([min(1, some.count("The cat!") / 3) for some in combinations(answers, 9)])
        assert vqa("a cat", answers) == pytest.approx(float(mean))
    assert (vqa("Two", ["2"]), vqa("2 dogs", ["two dogs", "3"]), vqa("x", ["y"])) == (1.0, 1.0, 0.0)


def test_boxes() -> None:
    assert iou("[0, 0, 10, 10]", "[5, 0, 15, 10]") == pytest.approx(50 / 150)
    assert iou('{"bbox_2d": [0, 0, 10, 10]}', "[0,0,10,10]") == 1.0
    assert iou("[0,0,2,2], [10,10,12,12]", "[10,10,12,12]") == pytest.approx(0.5)
    for ours, theirs in (("nothing", "[0,0,1,1]"), ("[3,3,3,3]", "[3,3,3,3]"), ("[5,5,1,1]", "[1,1,5,5]")):
        assert iou(ours, theirs) == 0.0


@pytest.mark.parametrize(
    ("name", "text", "answers", "value"),
    [
        ("exact", "A cat.\n", ("A cat.",), 1.0),
        ("exact", "a cat", ("A cat",), 0.0),
        ("text", "A  Cat!", ("dog", "a cat"), 1.0),
        ("anls", "abcd", ("abce",), 0.75),
        ("anls:0.8", "abcd", ("abce",), 0.0),
        ("number", "There are 3.", ("3",), 1.0),
        ("choice:yes,no", "Yes, it is.", ("yes",), 1.0),
        ("json", '{"a": 1, "b": 2}', ('{"b":2,"a":1}',), 1.0),
        ("iou:0.5", "[0,0,10,10]", ("[0,0,10,9]",), 1.0),
        ("vqa", "cat", ("cat",), 1.0),
    ],
)
def test_an_answer_is_held_against_all_right_ones(name: str, text: str, answers: tuple[str, ...], value: float) -> None:
    score = score_named(name)
    assert score.whole(score.row(text, answers)) == pytest.approx(value)


@pytest.mark.parametrize(
    "name", ["none", "tokens", "f.py:mine", "iou:2", "iou:x", "bleu:4", "anls:7", "exact:1", "choice:a"]
)
def test_no_other_is_taken(name: str) -> None:
    with pytest.raises(InputError) as error:
        score_named(name)
    assert "\n" not in str(error.value)
