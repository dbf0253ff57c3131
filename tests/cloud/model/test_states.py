"""A target whose layers keep states: what is shared, drafted and refused of one."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.model.tensor_parallel import check_ranks
from cutline.core.sampling import Sampling
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.families import Positions
from cutline.protos.messages import Confirmed, Finished, Opened
from cutline.testing.models.comparison import Prompt, Whole

PROMPT = tuple(range(20, 60))
STEPS = 12


def ask(engine: Engine, tokens: Sequence[int], draft: Sequence[int] = ()) -> tuple[int, list[int]]:
    """How many rows were reused, and the answer."""
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    asked = SessionRequest(
        tokens=tuple(tokens),
        prompt_length=len(tokens),
        max_tokens=STEPS,
        sampling=Sampling(),
        effort=1.0,
        draft=tuple(draft),
        positions=Positions(np.empty((3, 0), np.int64)),
    )
    engine.open(asked, (), inbox.put)
    reused, answer = 0, list[int]()
    while not isinstance(event := inbox.get(timeout=120), Finished):
        match event:
            case Opened():
                reused = event.reused
            case Confirmed():
                answer += event.tokens
            case _:
                raise AssertionError(event)
    return reused, answer


def test_sessions_go_on_where_states_were_kept_and_nowhere_else(targets: Callable[[str], Bundle]) -> None:
    """Second turns, and prompts that begin alike; with drafts that are right, wrong at once, or wrong in the middle."""
    bundle = targets("qwen3.5")
    whole, engine = Whole(bundle), Engine(Target(bundle, Capacity(slots=3, context=128)), ())
    engine.start()
    try:
        right = whole.answer(Prompt(PROMPT, ()), STEPS)
        wrong = [*right[:3], (right[3] + 1) % 300, *right[4:6]]
        for draft in ((), right[:6], wrong, [(right[0] + 1) % 300]):
            assert ask(engine, PROMPT, draft)[1] == right
        told = [*PROMPT, *right, 7, 8, 9]  # all but the last token of the answer has been run
        reused, answer = ask(engine, told)
        assert reused == len(PROMPT) + STEPS - 1
        assert answer == whole.answer(Prompt(tuple(told), ()), STEPS)
        other = (*PROMPT[:-5], 3, 4, 5)  # where no state was kept
        reused, answer = ask(engine, other)
        assert reused == 0
        assert answer == whole.answer(Prompt(other, ()), STEPS)
    finally:
        engine.stop()


def test_what_needs_layers_alike_is_refused_by_name(targets: Callable[[str], Bundle]) -> None:
    for name in ("qwen3.5", "lfm2-vl"):
        bundle = targets(name)
        with pytest.raises(InputError, match=r"layers of its own kind.*leave out --compile"):
            Target(bundle, Capacity(slots=1, context=32), compiled=True)
        with pytest.raises(InputError, match=r"layers of its own kind.*leave out --tensor-parallel"):
            check_ranks(bundle, 2)
