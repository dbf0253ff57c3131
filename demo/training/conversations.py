"""Conversations about cards: up to three turns, in the shapes that clients send, with the right answer to each turn.

A question is about the picture that came last before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutline.demo.cards import PLACES, Card
from cutline.demo.questions import KINDS, WORDINGS, answer_to
from cutline.demo.training import wordings
from cutline.demo.training.scenes import Kind, Scenes
from cutline.demo.training.wordings import NONE, REFUSAL


@dataclass(frozen=True, slots=True)
class DialogueTurn:
    """A user's turn and the right answer to it: `pictures` of the scenes come with it, before or behind the `text`.

    `kind` is a name of `questions.KINDS`, or "refuse". `learned` is False where `answer` is a wrong one, as a history
    may hold.
    """

    pictures: tuple[int, ...]
    text_first: bool
    text: str
    answer: str
    kind: str
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An operator's `system` turn, if any, and the turns."""

    system: str | None
    turns: tuple[DialogueTurn, ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """How likely a conversation has so many turns, and how likely a question is of each kind of `questions.KINDS`."""

    turns: dict[int, float]
    kinds: dict[str, float]


ALL_ALIKE = Mix({1: 0.34, 2: 0.3, 3: 0.29, 4: 0.04, 6: 0.03}, dict.fromkeys(KINDS, 1 / len(KINDS)))
LATER_TURNS = Mix(
    {1: 0.2, 2: 0.35, 3: 0.4, 4: 0.03, 6: 0.02},
    {"read": 0.14, "sum": 0.13, "count": 0.05, "colour": 0.26, "digit": 0.12, "describe": 0.3},
)


def picture_kinds(count: int, rng: np.random.Generator) -> tuple[Kind, ...]:
    """What a training step's pictures are."""
    shares = {Kind.CARD: 0.68, Kind.DISTRACTED: 0.14, Kind.BLANK: 0.05, Kind.STRANGE: 0.13}
    return tuple(rng.choice(np.array(list(shares), object), count, p=list(shares.values())))


def conversations(scenes: Scenes, mix: Mix, rng: np.random.Generator) -> list[Dialogue]:
    """Conversations of `mix` about all pictures of `scenes`: one or two in each, and some about none."""
    left = list(range(len(scenes.kinds)))
    found = []
    while left:
        count = int(rng.choice([0, 1, 2], p=[0.05, 0.5, 0.45]))
        found.append(converse(scenes, tuple(left[:count]), mix, rng))
        left = left[count:]
    return found


def converse(scenes: Scenes, pictures: tuple[int, ...], mix: Mix, rng: np.random.Generator) -> Dialogue:
    """A conversation of `mix` about these pictures of `scenes`: none, one or two."""
    turns: list[DialogueTurn] = []
    seen: list[int] = []
    # Two pictures come together, or each with a question of its own.
    waiting = [pictures] if rng.random() < 0.7 else [(one,) for one in pictures]
    count = max(len(waiting), int(rng.choice(list(mix.turns), p=list(mix.turns.values()))))
    for index in range(count):
        new = waiting.pop(0) if waiting else ()
        seen += new
        text, answer, kind = _asked(scenes, seen, mix, rng)
        learned = index == count - 1 or rng.random() > 0.15
        if not learned:  # histories hold wrong answers, and what comes next is read off the picture all the same
            answer = _asked(scenes, [int(rng.integers(len(scenes.kinds)))], mix, rng)[1]
        turns.append(DialogueTurn(new, bool(rng.random() < 0.5), text, answer, kind, learned))
    system = wordings.system(rng) if rng.random() < 0.25 else None
    return Dialogue(system, tuple(turns))


def question_about(card: Card, kind: str, rng: np.random.Generator, *, phrased: bool) -> tuple[str, str]:
    """A question of `kind` about a card, and its answer; `phrased` takes a wording of `wordings.PHRASINGS`."""
    place = card.digits[rng.integers(len(card.digits))].place
    among = wordings.PHRASINGS[kind] if phrased else WORDINGS[kind]
    return among[rng.integers(len(among))].format(place=place), answer_to(card, kind, place)


def _asked(scenes: Scenes, seen: list[int], mix: Mix, rng: np.random.Generator) -> tuple[str, str, str]:
    """A question, its answer and its kind, with the pictures `seen` so far."""
    if not seen or rng.random() < 0.1:
        return wordings.talk(rng), REFUSAL, "refuse"
    kind = str(rng.choice(list(mix.kinds), p=list(mix.kinds.values())))
    card, phrased = scenes.card(seen[-1]), bool(rng.random() < 0.3)
    if not card.digits:
        among = wordings.PHRASINGS[kind] if phrased else WORDINGS[kind]
        place = PLACES[rng.integers(len(PLACES))]
        return among[rng.integers(len(among))].format(place=place), REFUSAL, "refuse"
    empty = sorted(set(PLACES) - {digit.place for digit in card.digits})
    if kind in ("colour", "digit") and empty and rng.random() < 0.2:
        return WORDINGS[kind][0].format(place=empty[rng.integers(len(empty))]), NONE, kind
    text, answer = question_about(card, kind, rng, phrased=phrased)
    return text, answer, kind
