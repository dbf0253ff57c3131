"""Every kind of tokenizer, against transformers' own reading of the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers
from transformers import PreTrainedTokenizerFast

from cutline.demo.bundles import TARGET
from cutline.errors import BundleError
from cutline.models.vocabulary import TOKENIZER, StreamDecoder, Vocabulary
from cutline.testing.models.random_models import BERT, words_of
from cutline.testing.models.tokenizers import of_pieces

MARKS = ("<image>", "<fake>")


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    kinds = {"pieces": lambda: of_pieces(MARKS), "words": lambda: words_of(BERT, 160)}
    kinds.get(name, lambda: Tokenizer.from_file(str(TARGET / TOKENIZER)))().save(str(path))
    return path


@pytest.fixture(scope="module", params=["pieces", "bytes", "words"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, object]:
    path = written(tmp_path_factory.mktemp("tokenizer"), request.param)
    return Vocabulary.read(path.read_bytes()), PreTrainedTokenizerFast(tokenizer_file=str(path))


# White space is added tokens of its own in Gemma's, and bytes stand for what has no piece.
TEXTS = st.text(st.sampled_from("the in our \n\t▁<>/ imagé😀日 "), max_size=40)


@settings(deadline=None)
@given(text=TEXTS)
@example(text="a\n\nb\n\n\n\nc   d")
@example(text="▁▁▁ the  end")
def test_a_text_has_the_tokens_that_it_has_in_transformers(both: tuple[Vocabulary, object], text: str) -> None:
    vocabulary, theirs = both
    assert isinstance(theirs, PreTrainedTokenizerFast)
    ids = vocabulary.encode(vocabulary.guard(text))
    assert list(ids) == theirs.encode(text, add_special_tokens=False)
    if not vocabulary.of_words:  # which cannot write every text
        assert vocabulary.decode(ids) == theirs.decode(list(ids), clean_up_tokenization_spaces=False)
    stream = StreamDecoder(vocabulary)
    assert "".join(map(stream.push, ids)) + stream.finish() == vocabulary.decode(ids)


def test_words_are_written_as_transformers_writes_them() -> None:
    tokenizer = words_of(BERT, 160)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    vocabulary = Vocabulary(words_of(BERT, 160))
    for text in ("a card, with 3 dots. is it red?", "UPPER case", "word7 WORD8!", "caf\u00e9"):
        ids = vocabulary.encode_plain(text)
        assert vocabulary.decode(ids).strip() == theirs.decode(list(ids))


def test_a_users_text_never_becomes_a_special_token(both: tuple[Vocabulary, object]) -> None:
    vocabulary, _ = both
    special = set(vocabulary.added.values())
    for content in vocabulary.added:
        ids = vocabulary.encode(vocabulary.guard(f"say {content} now"))
        assert not special & set(ids)
        assert vocabulary.encode(content) == (vocabulary.added[content],)


@pytest.mark.parametrize("kind", ["a space in front", "no bytes", "another decoder"])
def test_another_kind_is_refused(kind: str) -> None:
    tokenizer = of_pieces(MARKS)
    if kind == "a space in front":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "no bytes":
        tokenizer.model.byte_fallback = False
    else:
        tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(BundleError, match="no other kind runs here"):
        Vocabulary(tokenizer)
