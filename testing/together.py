"""An agent and its worker in one process, on the demo's models, for tests; and what holds of their every answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.requests import CardRequest
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.inference.drafter import Drafter, OpenDrafter
from cutline.models.bundle import Bundle


@asynccontextmanager
async def together(
    target: Bundle, drafter: Bundle, *, slots: int = 8, open_drafter: OpenDrafter = Drafter.open
) -> AsyncIterator[Agent]:
    """An agent and its worker, in this process; its drafter may be a `ScriptedDrafter`."""
    context = drafter.manifest.decoder.context
    async with (
        serve(target, WorkerOptions(slots=slots, context=context)) as address,
        Agent(drafter, worker=address, threads=1, settings=AgentSettings(open_drafter=open_drafter)) as agent,
    ):
        yield agent


def asking(request: CardRequest, mode: Mode, *, sampling: Sampling | None = None, **options: Any) -> Request:
    """A request's question in one mode, with further options."""
    max_tokens = int(options.pop("max_tokens", 64))
    return Request.about(
        request.image,
        request.question.text,
        mode=mode,
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        **options,
    )


def ids(answer: Answer) -> tuple[int, ...]:
    """An answer's token ids."""
    return tuple(token.id for token in answer.tokens)


def check_account(answer: Answer) -> None:
    """Check the invariants of every answer in which a worker took part."""
    assert answer.accepted == sum(token.source is Provenance.DRAFT for token in answer.tokens) <= answer.drafted
    assert not any(token.source is Provenance.EDGE for token in answer.tokens)
    assert answer.text == "".join(token.text for token in answer.tokens).strip()
    assert answer.exact
    assert answer.worker is not None
    assert answer.rounds >= 1
    assert answer.bytes_up > 0 < answer.bytes_down
    assert 0 < answer.ttft_ms <= answer.latency_ms
