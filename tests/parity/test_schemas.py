"""Answers to random schemas: those that end are valid, and all modes say the same."""

from __future__ import annotations

import asyncio
import random
from itertools import cycle

import pytest

from cutline.core.constraint import Constraint
from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.testing.schemas import MAX_TOKENS, schema, valid
from cutline.testing.together import asking, ids, together


@pytest.mark.sampled(15, 10_000)
@pytest.mark.timeout(5 * 3600)
def test_what_a_schema_asks_for_is_valid_and_in_every_mode_the_same(rounds: int) -> None:
    async def run() -> None:
        draw, ended, refused = random.Random(7), 0, 0  # noqa: S311
        cards = cycle(requests(Split.EVALUATION, 50, seed=7))
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            for number, card in zip(range(rounds), cards, strict=False):
                wanted = schema(draw)
                temperature = (0.0, 0.8)[number % 2]
                try:
                    how = Sampling(constraint=Constraint.json_schema(wanted), temperature=temperature, seed=number)
                    answers = {
                        mode: await agent.answer(asking(card, mode, sampling=how, max_tokens=MAX_TOKENS, store=store))
                        for mode, store in ((Mode.CLOUD, True), (Mode.DRAFT, False), (Mode.AUTO, True))
                    }
                except InputError:
                    refused += 1
                    continue
                whole = answers[Mode.CLOUD]
                assert {ids(one) for one in answers.values()} == {ids(whole)}, wanted
                ended += whole.complete
                assert not whole.complete or valid(whole.text, wanted), (wanted, whole.text)
        assert refused <= 0.02 * rounds + 1
        assert ended >= 0.7 * (rounds - refused)

    asyncio.run(run())
