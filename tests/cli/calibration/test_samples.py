"""What a calibration asks: every group, made of single questions, with the target's own answers in between."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cutline.cli.calibration.inputs import QuestionSource
from cutline.cli.calibration.samples import SYSTEMS, Conversation, chosen_groups, conversations, sampled
from cutline.core.agreement.measures import measure_named
from cutline.core.conversation import ImagePart
from cutline.core.request import Mode, Request
from cutline.edge.generation.conditions import GROUPS, PLAIN
from cutline.edge.generation.gate import calibrate_gate
from cutline.edge.generation.result import Answer, Provenance
from cutline.errors import InputError, PromptError, WorkerUnavailable
from cutline.testing.agent import spoken

STOP = 2


def source(picture: str, text: str) -> QuestionSource:
    return QuestionSource(f"line {text}", picture, lambda: picture.encode(), text, None)


# Four pictures, of which one has four questions, one two, and two one each.
SOURCES = [source(picture, text) for picture, text in zip("aaaabbcd", "12345678", strict=True)]


class Models:
    """A target that says the question, and a drafter that says it too, but for those it has `wrong`."""

    def __init__(self, *, wrong: str = "", longest: int = 99, lost: bool = False) -> None:
        self.asked: list[Request] = []
        self._wrong, self._longest, self._lost = wrong, longest, lost

    async def answer(self, question: Request) -> Answer:
        self.asked.append(question)
        if len(question.messages) > self._longest:
            raise PromptError("the prompt is too long")
        ours = question.mode is Mode.EDGE
        said = spoken("no" if ours and question.text in self._wrong else question.text, stop=STOP)
        tokens = [msgspec.structs.replace(one, id=STOP if one.text == "" else hash(one.text)) for one in said.tokens]
        return msgspec.structs.replace(
            said, tokens=tokens, confidence=0.75 if ours else None, alone_from=0 if self._lost and not ours else None
        )


def talked(models: Any, some: list[Conversation], groups: tuple[str, ...] = GROUPS) -> Any:
    return asyncio.run(sampled(models, some, groups, advance=lambda: None))


def test_every_line_is_asked_in_every_group() -> None:
    models = Models(wrong="5")
    found = talked(models, list(conversations(SOURCES, GROUPS, count=99)))
    gate = calibrate_gate(found.found, GROUPS)
    assert {one.requests for one in gate.groups.values()} == {len(SOURCES)}
    assert found.left_out == 0
    firsts = [one for one in found.found if one.group == PLAIN]
    assert sorted(one.drafted == one.truth for one in firsts) == [False, *[True] * 7]
    assert {one.confidence for one in found.found} == {0.75}


def test_the_same_seed_makes_the_same_conversations_and_no_more_than_were_asked_for() -> None:
    some = [list(conversations(SOURCES, GROUPS, count=3, seed=seed)) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]
    assert len(some[0]) == 3 * 2 * 2 * 2


def test_a_conversation_goes_on_with_the_targets_own_answers_about_the_same_picture() -> None:
    models = Models(wrong="12345678")
    groups = chosen_groups(["one picture, picture first, third question, no system turn"])
    talked(models, list(conversations(SOURCES, groups, count=99)), groups)
    asked = [one for one in models.asked if one.mode is Mode.EDGE]
    assert len(asked) == len(SOURCES), "only what is wanted is asked of the drafter"
    for question in asked:
        first, said, second, again, third = question.messages
        assert [part for part in first.parts if isinstance(part, ImagePart)] == [first.parts[0]]
        assert (said.role, said.text, again.text) == ("assistant", first.text, second.text)
        texts = [first.text, second.text, third.text]
        assert len(set(texts)) == 3
        if question.images == (b"a",):  # which has four questions of its own
            assert set(texts) < set("1234")


def test_two_pictures_are_two_and_a_single_one_makes_none() -> None:
    groups = chosen_groups(["two pictures"])
    for one in conversations(SOURCES, groups, count=99):
        assert len({source.picture for source in one.shown}) == 2
    assert not list(conversations(SOURCES[:4], groups, count=99))
    assert {one.requests for one in calibrate_gate([], groups).groups.values()} == {0}


def test_system_turns_are_taken_in_turn() -> None:
    groups = chosen_groups(["one picture, system turn, first question"])
    assert {one.system for one in conversations(SOURCES, groups, count=9)} == set(SYSTEMS)
    assert {one.system for one in conversations(SOURCES, groups, count=9, systems=["Mine."])} == {"Mine."}


def test_groups_are_chosen_by_words() -> None:
    assert chosen_groups([]) == GROUPS
    assert chosen_groups([PLAIN]) == (PLAIN,)
    assert len(chosen_groups(["two pictures, text first", "system turn"])) == 3 + 12
    for words in ("any", "one picture, two pictures", ""):
        with pytest.raises(InputError, match="--groups"):
            chosen_groups([words])


def test_what_becomes_too_long_is_left_out_and_counted() -> None:
    groups = chosen_groups(["one picture, picture first, no system turn"])
    found = talked(Models(longest=3), list(conversations(SOURCES, groups, count=99)), groups)
    assert [sum(one.group == group for one in found.found) for group in groups] == [8, 8, 0]
    assert found.left_out == 8


def test_a_line_that_is_too_long_by_itself_is_an_error_that_names_it() -> None:
    with pytest.raises(PromptError, match=r"line \d: the prompt is too long"):
        talked(Models(longest=0), list(conversations(SOURCES, (PLAIN,), count=1)), (PLAIN,))


def test_a_worker_that_is_lost_ends_it() -> None:
    class Lost(Models):
        async def answer(self, question: Request) -> Answer:
            raise WorkerUnavailable("gone")

    with pytest.raises(WorkerUnavailable, match="gone"):
        talked(Lost(), list(conversations(SOURCES, GROUPS, count=2)))


def test_an_answer_that_was_cut_short_is_one_that_no_gate_keeps() -> None:
    class Short(Models):
        async def answer(self, question: Request) -> Answer:
            return msgspec.structs.replace(spoken("a", source=Provenance.EDGE), confidence=0.9)

    found = talked(Short(), list(conversations(SOURCES, (PLAIN,), count=9)), (PLAIN,))
    assert {one.confidence for one in found.found} == {0.0}


def known(picture: str, text: str, answer: str | None) -> QuestionSource:
    return QuestionSource(f"line {text}", picture, lambda: picture.encode(), text, answer, f"of {picture}")


def test_known_answers_are_held_against_without_asking_anybody_else() -> None:
    models = Models(wrong="2")
    sources = [known("a", "1", "1."), known("a", "2", "2"), known("b", "3", "3"), known("b", "4", "no, not that")]
    some = list(conversations(sources, GROUPS, count=9, known=True))
    found = asyncio.run(sampled(models, some, GROUPS, measure=measure_named("text"), advance=lambda: None))
    assert {one.mode for one in models.asked} == {Mode.EDGE}
    assert {len(one.images) for one in models.asked} == {1}, "nobody knows what is right of two pictures"
    firsts = {one.population: [] for one in found.found}  # type: dict[str | None, list[bool]]
    for one in found.found:
        if one.group == PLAIN:
            firsts[one.population].append(one.agreed)
    assert {name: sorted(agreed) for name, agreed in firsts.items()} == {"of a": [False, True], "of b": [False, True]}
    assert {one.truth for one in found.found} == {None}
    for question in models.asked:
        if len(question.messages) == 3:  # what is known to be right stands before the second question
            first, said, _ = question.messages
            answers = {one.text: one.answer for one in sources}
            assert said.text == answers[first.text]
            assert {one.picture for one in sources if one.text in (first.text, question.text)} in ({"a"}, {"b"})


def test_a_line_without_an_answer_is_named() -> None:
    with pytest.raises(InputError, match='line 9 has no "answer"'):
        list(conversations([known("a", "9", None)], GROUPS, count=9, known=True))


def test_against_known_answers_groups_of_two_pictures_stay_as_they_are() -> None:
    assert all(group.startswith("one picture") for group in chosen_groups([], known=True))
    assert len(chosen_groups([], known=True)) == len(GROUPS) / 2
    assert chosen_groups(["third question"], known=True) == tuple(
        group for group in chosen_groups(["third question"]) if group.startswith("one picture")
    )
    with pytest.raises(InputError, match="single pictures alone"):
        chosen_groups(["two pictures"], known=True)
