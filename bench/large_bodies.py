"""What one client's large bodies cost the others: their answers' latency, and links that were taken for lost.

    python -m cutline.bench.large_bodies --seconds 20 --rounds 5

A worker and an agent of the demo's pair run as they do in earnest. A few clients ask for drafted answers one after
another. They are alone, and then, as long, one more client posts bodies of one kind without a pause, from a process of
its own: each kind in turn, round after round. A kind costs what it does beside the calm right before it, at the median
of the rounds: what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from statistics import median
from typing import Any

import httpx
import msgspec
import numpy as np

from cutline.cli.process.children import agent_process, worker_process
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.api.requests.schema import ChatRequest

PATH = "/v1/chat/completions"
CLIENTS = 3
LARGE = 47_000_000  # bytes, just below what a request may have
WORDS = 40_000_000
LOOK_SECONDS = 0.02  # between two looks at how soon the agent answers what takes no work


def _talk(content: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


def _picture() -> bytes:
    url = "data:image/png;base64," + base64.b64encode(bytes(33_000_000)).decode()
    return _talk([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}])


BODIES: dict[str, Callable[[], bytes]] = {
    "a string": lambda: json.dumps({"x": "A" * LARGE}).encode(),
    "a text of words": lambda: _talk("word " * (WORDS // 5)),
    "an image that is none": _picture,
}


@dataclass(slots=True)
class _Seen:
    """What clients saw: seconds of each answer, and of each look; answers whose worker was lost, or that were refused.

    `posted` counts the bodies that were answered meanwhile.
    """

    seconds: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    lost: int = 0
    refused: int = 0
    posted: int = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    image = (DRAFTER.parents[1] / "examples" / "card1.png").read_bytes()
    asked = msgspec.json.encode(ChatRequest.asking(Request.about(image, "Describe the card.", mode=Mode.DRAFT)))
    seen: dict[str, list[tuple[_Seen, _Seen]]] = {kind: [] for kind in BODIES}
    with worker_process(TARGET) as worker, agent_process(DRAFTER, worker) as agent:
        url = f"http://{agent}"
        _ask(url, asked, 5.0, _Seen())
        for _ in range(given.rounds):
            for kind, pairs in seen.items():
                calm, attacked = _Seen(), _Seen()
                _ask(url, asked, given.seconds, calm)
                with _posting(url, kind, attacked):
                    _ask(url, asked, given.seconds, attacked)
                pairs.append((calm, attacked))
    print(json.dumps({kind: _told(pairs) for kind, pairs in seen.items()}, indent=2))


def _ask(url: str, asked: bytes, seconds: float, seen: _Seen) -> None:
    until = time.monotonic() + seconds

    def client() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            while time.monotonic() < until:
                began = time.perf_counter()
                answer = http.post(PATH, content=asked, headers={"content-type": "application/json"})
                if answer.status_code != 200:
                    seen.refused += 1
                    continue
                seen.seconds.append(time.perf_counter() - began)
                told = answer.json()["cutline"]
                seen.lost += bool(told["lost"]) or not told["exact"]

    def look() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            while time.monotonic() < until:
                began = time.perf_counter()
                http.get("/healthz")
                seen.looks.append(time.perf_counter() - began)
                time.sleep(LOOK_SECONDS)

    threads = [*(threading.Thread(target=client) for _ in range(CLIENTS)), threading.Thread(target=look)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


@contextmanager
def _posting(url: str, kind: str, seen: _Seen) -> Iterator[None]:
    """While this is entered, one client posts bodies of a kind again and again."""
    spawning = multiprocessing.get_context("spawn")
    begun, over, posted = spawning.Event(), spawning.Event(), spawning.Value("i", 0)
    process = spawning.Process(target=_post, args=(url, kind, begun, over, posted))
    process.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        process.join()
        seen.posted = posted.value


def _post(url: str, kind: str, begun: Event, over: Event, posted: Any) -> None:
    body = BODIES[kind]()
    begun.set()
    while not over.is_set():
        with suppress(httpx.TransportError):  # refused before it was read to its end
            httpx.post(
                url + PATH,
                content=_pieces(body),
                headers={"content-type": "application/json", "content-length": str(len(body))},
                timeout=60,
                trust_env=False,
            )
        posted.value += 1


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 1 << 20):
        yield body[start : start + (1 << 20)]


def _told(pairs: Sequence[tuple[_Seen, _Seen]]) -> dict[str, object]:
    """Figures of a kind, from the pairs of calm and attack, a round each."""
    told: dict[str, object] = {}
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        times = [[float(np.quantile(one.seconds, quantile)) for one in pair] for pair in pairs]
        told[f"{name}_ms"] = [round(median(column) * 1e3, 1) for column in zip(*times, strict=True)]
        told[f"{name}_ratio"] = round(median(attacked / calm for calm, attacked in times), 2)
        told[f"{name}_ratios"] = [round(attacked / calm, 2) for calm, attacked in times]
    looks = [[float(np.quantile(one.looks, 0.99)) for one in pair] for pair in pairs]
    told["healthz_p99_ms"] = [round(median(column) * 1e3, 1) for column in zip(*looks, strict=True)]
    told["answers"] = [sum(len(pair[place].seconds) for pair in pairs) for place in (0, 1)]
    told["lost"] = sum(attacked.lost for _, attacked in pairs)
    told["refused"] = sum(attacked.refused for _, attacked in pairs)
    told["posted"] = sum(attacked.posted for _, attacked in pairs)
    return told


if __name__ == "__main__":
    main()
