"""What the demo's models learn from in conversations: right answers, the bundle's own prompt, nothing held back."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.demo.bundles import TARGET
from cutline.demo.cards import EMPTY, Card, Split
from cutline.demo.questions import WORDINGS, answer_to
from cutline.demo.training import scenes, wordings
from cutline.demo.training.conversations import (
    ALL_ALIKE,
    LATER_TURNS,
    Dialogue,
    DialogueTurn,
    Mix,
    conversations,
    picture_kinds,
)
from cutline.demo.training.lessons import Teacher, transcript
from cutline.demo.training.scenes import Kind, Scenes, draw
from cutline.demo.training.wordings import NONE, REFUSAL
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder


def drawn(count: int, seed: int, mix: Mix = ALL_ALIKE) -> tuple[Scenes, list[Dialogue]]:
    rng = np.random.default_rng(seed)
    pictures = draw(picture_kinds(count, rng), Split.TRAIN, rng)
    return pictures, conversations(pictures, mix, rng)


def messages_before(conversation: Dialogue, end: int) -> tuple[list[Message], int]:
    """What a client sends to have turn `end` answered, and the number of pictures."""
    messages = [] if conversation.system is None else [Message("system", (TextPart(conversation.system),))]
    pictures = 0
    for index, turn in enumerate(conversation.turns[: end + 1]):
        shown = tuple(ImagePart() for _ in turn.pictures)
        words = (TextPart(turn.text),)
        messages.append(Message("user", (*words, *shown) if turn.text_first else (*shown, *words)))
        if index < end:
            messages.append(Message("assistant", (TextPart(turn.answer),)))
        pictures += len(shown)
    return messages, pictures


def test_what_is_learnt_from_is_the_prompt_that_an_agent_builds() -> None:
    prompts = PromptBuilder.open(Bundle.open(TARGET))
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    _, talks = drawn(60, seed=1)
    lesson = Teacher(tokenizer).conversations(talks)
    for row, talk in enumerate(talks):
        ids: list[int] = []
        for index, (asked, answer) in enumerate(transcript(talk)):
            ids += tokenizer.encode(asked).ids
            messages, pictures = messages_before(talk, index)
            assert tuple(ids) == prompts.build(messages, [(0, 0)] * pictures).ids
            answered = tokenizer.encode(answer).ids
            learned = lesson.labels[row, len(ids) - 1 : len(ids) - 1 + len(answered)].tolist()
            assert learned == (answered if talk.turns[index].learned else [-100] * len(answered))
            ids += answered
        assert lesson.ids[row, : len(ids)].tolist() == ids


def test_parts_of_a_lesson_hold_every_row_and_all_that_is_learnt_of_it() -> None:
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    lesson = Teacher(tokenizer).conversations(drawn(40, seed=2)[1])
    parts = list(lesson.parts())
    assert sum(len(part.ids) for part in parts) == len(lesson.ids)
    assert sum(int((part.labels != -100).sum()) for part in parts) == int((lesson.labels != -100).sum())
    image = tokenizer.get_vocab()["<image>"]
    for part in parts:  # a row keeps the places of all its pictures
        assert part.ids.eq(image).sum().item() == 16 * part.pictures.ge(0).sum().item()


@pytest.mark.parametrize("mix", [ALL_ALIKE, LATER_TURNS])
def test_learnt_answers_are_right(mix: Mix) -> None:
    pictures, talks = drawn(400, seed=3, mix=mix)
    kinds = set()
    for talk in talks:
        seen: list[int] = []
        for turn in talk.turns:
            seen += turn.pictures
            if not turn.learned:
                continue
            kinds.add(turn.kind)
            assert turn.answer == expected(turn, [pictures.card(index) for index in seen])
    assert kinds == {*WORDINGS, "refuse"}


def expected(turn: DialogueTurn, seen: list[Card]) -> str:
    """The right answer, read off the question's words."""
    if turn.text in wordings.TALK or not seen:
        return REFUSAL
    card, text = seen[-1], turn.text
    place = next((digit.place for digit in card.digits if digit.place in text), None)
    for kind in WORDINGS:
        for wording in (*WORDINGS[kind], *wordings.PHRASINGS[kind]):
            before, _, after = wording.partition("{place}")
            if text.startswith(before) and text.endswith(after) and (("{place}" in wording) or text == wording):
                if not card.digits:
                    return REFUSAL
                if "{place}" in wording:
                    return NONE if place is None else answer_to(card, kind, place)
                return answer_to(card, kind, card.digits[0].place)
    return REFUSAL


def test_no_two_kinds_share_a_wording() -> None:
    every = [one for kind in WORDINGS for one in (*WORDINGS[kind], *wordings.PHRASINGS[kind])]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("learnt", "held_back"),
    [
        (wordings.TALK, wordings.HELD_BACK_TALK),
        (wordings.SYSTEMS, wordings.HELD_BACK_SYSTEMS),
        (scenes.PHOTOGRAPHS, scenes.HELD_BACK),
    ],
)
def test_what_is_held_back_is_not_learnt_from(learnt: tuple[str, ...], held_back: tuple[str, ...]) -> None:
    assert held_back
    assert not set(learnt) & set(held_back)


def test_distractors_leave_the_digits_as_they_are() -> None:
    rng = np.random.default_rng(4)
    distracted = draw((Kind.DISTRACTED,) * 60, Split.TRAIN, rng)
    plain = draw((Kind.CARD,) * 60, Split.TRAIN, np.random.default_rng(4))
    assert np.array_equal(distracted.batch.values, plain.batch.values)
    assert not np.array_equal(distracted.batch.pixels, plain.batch.pixels)
    for index in range(60):
        for quadrant in np.flatnonzero(distracted.batch.values[index] != EMPTY):
            row, column = np.array(divmod(int(quadrant), 2)) * 32
            same = (
                distracted.batch.pixels[index, row : row + 32, column : column + 32]
                == plain.batch.pixels[index, row : row + 32, column : column + 32]
            )
            assert same.mean() > 0.85  # specks, and a frame at the rim


def test_what_is_no_card_holds_no_digit() -> None:
    pictures = draw((Kind.BLANK, Kind.STRANGE) * 20, Split.EVALUATION, np.random.default_rng(5))
    assert (pictures.batch.values == EMPTY).all()
    assert all(pictures.card(index).digits == () for index in range(40))
    assert pictures.batch.pixels.shape == (40, 64, 64, 3)
