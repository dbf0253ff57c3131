"""What HTTP adds to an answer: the same scripted agent asked directly and over HTTP, in turns, by one process.

    python -m cutline.bench.http_overhead --requests 500

The server runs in a process of its own, as `cutline edge` does. What it takes to answer is nothing, so all that is
measured is reading, checking and writing: of a request with an image of 50 kB, and of a stream from the moment that the
first guess is there until its bytes are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import AsyncGenerator
from multiprocessing.connection import Connection

import httpx
import msgspec
import numpy as np

from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.api.server import ServerOptions, serve
from cutline.edge.generation.events import Event, Guessed, Planned
from cutline.edge.generation.result import Answer
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent, spoken

IMAGE_BYTES = 50_000
PATH = "/v1/chat/completions"
ANSWER = spoken(*(f" word{index}" for index in range(16)), stop=2)


class Stamped(ScriptedAgent):
    """A scripted agent whose first guess says when it was made, on the clock that all processes share."""

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        yield Planned(mode=Mode.DRAFT, cut="image", wire=None)
        await asyncio.sleep(0.002)  # so that the plan's chunk is on its way
        yield Guessed(0, str(time.perf_counter_ns()))
        yield ANSWER

    async def answer(self, question: Request) -> Answer:
        return ANSWER


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    count = parser.parse_args().requests
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=[theirs], daemon=True)
    server.start()
    try:
        print(json.dumps(_measure(f"http://{ours.recv()}", count), indent=2))
    finally:
        server.terminate()
        server.join()


def _serve(ready: Connection) -> None:
    agent = Stamped(Bundle.open(DRAFTER).manifest)
    asyncio.run(serve(agent, ServerOptions(listen="127.0.0.1:0"), announce=ready.send, stop=asyncio.Event()))


def _measure(url: str, count: int) -> dict[str, object]:
    image = np.random.default_rng(0).bytes(IMAGE_BYTES)
    asked = ChatRequest.asking(Request.about(image, "What is it?", mode=Mode.DRAFT))
    whole = msgspec.json.encode(asked)
    extension = msgspec.structs.replace(asked.cutline, guesses=True)
    streamed = msgspec.json.encode(msgspec.structs.replace(asked, stream=True, cutline=extension))
    agent = Stamped(Bundle.open(DRAFTER).manifest)
    question = asked.question([image])
    direct, over, first = [], [], []

    async def alone() -> float:
        began = time.perf_counter()
        await agent.answer(question)
        return time.perf_counter() - began

    with httpx.Client(base_url=url, trust_env=False) as client:
        for _ in range(count):
            direct.append(asyncio.run(alone()))
            began = time.perf_counter()
            client.post(PATH, content=whole).raise_for_status()
            over.append(time.perf_counter() - began)
            first.append(_first_guess(client, streamed))
    added = [a - b for a, b in zip(over, direct, strict=True)]
    return {"image_bytes": IMAGE_BYTES, "requests": count, "added": _told(added), "guess_to_bytes": _told(first)}


def _first_guess(client: httpx.Client, body: bytes) -> float:
    """Seconds from when the first guess was made to when its bytes were here."""
    with client.stream("POST", PATH, content=body) as response:
        found = None
        for line in response.iter_lines():
            if found is None and '"guessed"' in line:
                now = time.perf_counter_ns()
                made = msgspec.json.decode(line.removeprefix("data: "))["cutline"]["guessed"]["text"]
                found = (now - int(made)) / 1e9
    if found is None:
        raise RuntimeError("no guess came")
    return found


def _told(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 3), "p95_ms": round(cuts[94] * 1e3, 3)}


if __name__ == "__main__":
    main()
