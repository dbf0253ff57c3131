"""The conditions that a question is asked under, as far as they change how well the drafter foresees the target.

The gate is calibrated group by group of them: what it was measured to keep under some says nothing of others. What
drafter and target are, and how the drafter's bundle chooses tokens by itself, a calibration implies: it is part of one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import groupby, product

import msgspec

from cutline.core.conversation import ImagePart, Message, VideoPart, details_of, every_part, pictures_of
from cutline.core.request import Request
from cutline.core.sampling import Sampling


class Order(enum.StrEnum):
    """Where the pictures of a conversation stand."""

    NONE = "no picture"
    PICTURE_FIRST = "picture first"  # all of them in the first question, before its text
    TEXT_FIRST = "text first"  # likewise, behind it
    OTHER = "other order"  # between texts, in later questions, or in a conversation whose turns do not alternate


_PICTURES = ("no picture", "one picture", "two pictures")
_QUESTIONS = ("first question", "second question", "third question")
_SYSTEM = {True: "system turn", False: "no system turn"}


class RequestConditions(msgspec.Struct, frozen=True, kw_only=True):
    """What is alike in requests that the gate may treat alike.

    `sampling` is how tokens are chosen, without what changes nothing.
    `system`: there is a system turn, before all others. `pictures` are those of the whole conversation, `earlier` the
    questions before the one to answer. Pictures are `smaller` where they were asked to be; there may be `tools`, and
    some of the pictures may be frames of a `video`.
    """

    sampling: Sampling
    order: Order
    system: bool
    pictures: int
    earlier: int
    smaller: bool = False
    tools: bool = False
    video: bool = False

    @property
    def group(self) -> str:
        """The name of the group, for people: of so few that each can be calibrated, or counted."""
        words = [
            _PICTURES[self.pictures] if self.pictures < len(_PICTURES) else "more pictures",
            *(["smaller pictures"] if self.smaller else []),
            *(["video"] if self.video else []),
            *([] if self.order is Order.NONE else [str(self.order)]),
            _QUESTIONS[self.earlier] if self.earlier < len(_QUESTIONS) else "later question",
            _SYSTEM[self.system],
            *(["tools"] if self.tools else []),
            *self.sampling.kinds,
        ]
        return ", ".join(words)


def group_of(request: Request) -> str:
    """The name of the group that a request belongs to."""
    conditions = conditions_of(request.messages, request.sampling)
    smaller = request.image_tokens is not None or "low" in details_of(request.messages)
    tools = request.tools is not None or any(message.role == "tool" for message in request.messages)
    return msgspec.structs.replace(conditions, smaller=smaller, tools=tools, video=request.filmed).group


def conditions_of(messages: Sequence[Message], sampling: Sampling) -> RequestConditions:
    """The conditions of a conversation whose last message asks."""
    system = bool(messages) and messages[0].role == "system"
    turns = messages[1:] if system else messages
    return RequestConditions(
        sampling=sampling.conditions,
        order=_order(turns),
        system=system,
        pictures=sum(pictures_of(message.parts) for message in messages),
        earlier=sum(message.role == "user" for message in turns[:-1]),
    )


def _order(turns: Sequence[Message]) -> Order:
    wanted = ("user" if place % 2 == 0 else "assistant" for place in range(len(turns)))
    alternate = all(turn.role == role for turn, role in zip(turns, wanted, strict=True))
    if not alternate or any(pictures_of(turn.parts) for turn in turns[1:]):
        return Order.OTHER
    pictured = (isinstance(part, ImagePart | VideoPart) for part in every_part(turns[:1]))
    kinds = [kind for kind, _ in groupby(pictured)]
    named = {(): Order.NONE, (False,): Order.NONE, (True, False): Order.PICTURE_FIRST, (False, True): Order.TEXT_FIRST}
    return named.get(tuple(kinds), Order.OTHER)


# The conditions that a calibration makes: clients ask under them, and conversations under them can be made of questions
# about single pictures.
CALIBRATED = tuple(
    RequestConditions(sampling=Sampling(), order=order, system=system, pictures=pictures, earlier=earlier)
    for pictures, order, system, earlier in product(
        (1, 2), (Order.PICTURE_FIRST, Order.TEXT_FIRST), (False, True), range(len(_QUESTIONS))
    )
)
GROUPS = tuple(one.group for one in CALIBRATED)
PLAIN = GROUPS[0]  # one question about one picture, which stands first
