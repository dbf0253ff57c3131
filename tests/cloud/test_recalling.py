"""Over the wire: images that are known need not come again, alone and along a chain, and how likely tokens were."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry.metrics import WorkerMetrics
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.errors import InputError, WorkerForgot
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.digests import image_digest
from cutline.protos.messages import Confirmed, Likelihood, Open, Opened, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]
SECONDS = 60  # that any one exchange may take


@contextlib.asynccontextmanager
async def workers(bundle: Bundle, *cuts: str, observer: Observer = NOBODY) -> AsyncIterator[WorkerClient]:
    """The first of workers that divide the layers at `cuts`; `observer` is told of it."""
    places = ["image", *cuts, "end"]
    async with asyncio.timeout(SECONDS), contextlib.AsyncExitStack() as stack:
        address = None
        for start, end in list(itertools.pairwise(places))[::-1]:
            worker = serve(
                bundle,
                WorkerOptions(slots=3, context=256, dtype=torch.float32, layers=(start, end), next_worker=address),
                observer=observer if start == "image" else NOBODY,
            )
            address = await stack.enter_async_context(worker)
        assert address is not None
        yield await stack.enter_async_context(WorkerClient(address))


async def heard(client: WorkerClient, opening: Open, image: bytes | None) -> tuple[Opened, list[int], list[Likelihood]]:
    upload = [] if image is None else list(image_chunks(image))
    tokens: list[int] = []
    told: list[Likelihood] = []
    opened: Opened | None = None
    async with client.session(opening, upload, timeout=SECONDS) as session:
        async for event in session.events():
            if isinstance(event, Opened):
                opened = event
            if isinstance(event, Confirmed):
                tokens += event.tokens
                told += event.likelihoods
    assert opened is not None
    return opened, tokens, told


@pytest.mark.parametrize("cuts", [(), ("decoder.0",), ("decoder.2",), ("head",)])
def test_a_known_image_need_not_come_again(bundle: Bundle, case: Case, cuts: tuple[str, ...]) -> None:
    """A first worker that only encodes keeps nothing; one of a chain keeps images, but no rows of prompts."""
    opening, image, answer = case
    keeps, reuses = cuts != ("decoder.0",), cuts == ()

    async def run() -> None:
        async with workers(bundle, *cuts) as client:
            asked = replace(opening, digests=(image_digest(image),))
            first, tokens, _ = await heard(client, asked, image)
            assert (tuple(tokens), first.kept, first.reused) == (answer, keeps, 0)
            known = replace(asked, images=0, known=1)
            if not keeps:
                with pytest.raises(WorkerForgot):
                    await heard(client, known, None)
                return
            again, tokens, _ = await heard(client, known, None)
            assert (tuple(tokens), again.kept) == (answer, True)
            assert again.reused == (len(opening.tokens) - 1 if reuses else 0)
            wrong = replace(asked, digests=(bytes(32),))
            with pytest.raises(InputError, match="not the one that its digest says"):
                await heard(client, wrong, image)

    asyncio.run(run())


@pytest.mark.parametrize("cuts", [(), ("decoder.0",), ("decoder.1", "head")])
@pytest.mark.parametrize("drafted", [0, 6])
def test_likelihoods_are_those_of_transformers(
    bundle: Bundle, unsplit: Any, case: Case, cuts: tuple[str, ...], drafted: int
) -> None:
    opening, image, answer = case
    logs = unsplit.logits((*opening.tokens, *answer), unsplit.pixels(image)).log_softmax(-1)[len(opening.tokens) - 1 :]
    draft = (*answer[:4], *answer[:2])[:drafted]  # right at first, then most likely wrong

    async def run() -> None:
        async with workers(bundle, *cuts) as client:
            asked = replace(opening, likelihoods=True, alternatives=3, draft=draft)
            _, tokens, told = await heard(client, asked, image)
            assert tuple(tokens) == answer
            assert len(told) == len(answer)
            for one, token, row in zip(told, tokens, logs, strict=False):
                assert one.logprob == pytest.approx(row[token].item(), abs=1e-3)
                best = row.topk(3)
                assert [value for _, value in one.alternatives] == pytest.approx(best.values.tolist(), abs=1e-3)
                assert one.alternatives[0][0] == best.indices[0] == token
            _, _, none = await heard(client, opening, image)
            assert none == []

    asyncio.run(run())


def test_an_operator_sees_what_is_kept_and_reused(bundle: Bundle, case: Case) -> None:
    opening, image, _ = case
    counts = WorkerMetrics()

    def value(name: str, **labels: str) -> float:
        return counts.registry.get_sample_value(name, labels) or 0.0

    async def run() -> None:
        async with workers(bundle, observer=counts) as client:
            asked = replace(opening, digests=(image_digest(image),))
            await heard(client, asked, image)
            await heard(client, replace(asked, images=0, known=1), None)
            described = await client.describe()
            assert 0 <= described.queue_seconds < 5

    asyncio.run(run())
    assert (value("cutline_images_total", found="yes"), value("cutline_images_total", found="no")) == (1, 1)
    rows = bundle.manifest.family.tokens((0, 0)) * bundle.manifest.decoder.width
    assert value("cutline_images_kept_bytes") == 4 * rows
    assert value("cutline_reused_tokens_total") == len(opening.tokens) - 1
    assert value("cutline_evicted_total") == 0
