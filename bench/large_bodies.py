"""What one client's large bodies cost the others: their answers' latency, and links that were taken for lost.

    python -m cutline.bench.large_bodies --seconds 20 --rounds 3

A worker and an agent of the demo's pair run as they do in earnest. A few clients ask for drafted answers one after
another; in turns, as long as each other, they are alone, or one more client posts bodies of one kind without a pause.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import msgspec

from cutline.cli.processes import agent_process, worker_process
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.generation.question import Mode, Question

PATH = "/v1/chat/completions"
CLIENTS = 3
LARGE = 47_000_000  # bytes, just below what a request may have
WORDS = 40_000_000


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
    """What clients saw: seconds of each answer, and answers whose worker was taken for lost, or that were refused."""

    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    refused: int = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    image = (DRAFTER.parents[1] / "examples" / "card1.png").read_bytes()
    asked = msgspec.json.encode(ChatRequest.asking(Question.about(image, "Describe the card.", mode=Mode.DRAFT)))
    bodies = {"alone": b""} | {name: make() for name, make in BODIES.items()}
    seen = {name: _Seen() for name in bodies}
    with worker_process(TARGET) as worker, agent_process(DRAFTER, worker) as agent:
        url = f"http://{agent}"
        _ask(url, asked, 5.0, _Seen())
        for _ in range(given.rounds):
            for name, body in bodies.items():
                with _posting(url, body):
                    _ask(url, asked, given.seconds, seen[name])
    print(json.dumps({name: _told(one) for name, one in seen.items()}, indent=2))


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

    _together([threading.Thread(target=client) for _ in range(CLIENTS)])


def _together(threads: list[threading.Thread]) -> None:
    for one in threads:
        one.start()
    for one in threads:
        one.join()


class _posting:
    """While this is entered, one client posts `body` again and again; an empty one is none."""

    def __init__(self, url: str, body: bytes) -> None:
        self._url, self._body = url, body
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._post)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _post(self) -> None:
        while self._body and not self._over.is_set():
            with suppress(httpx.TransportError):  # refused before it was read to its end
                httpx.post(
                    self._url + PATH,
                    content=self._pieces(),
                    headers={"content-type": "application/json", "content-length": str(len(self._body))},
                    timeout=60,
                    trust_env=False,
                )

    def _pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), 1 << 20):
            yield self._body[start : start + (1 << 20)]


def _told(seen: _Seen) -> dict[str, float]:
    cuts = statistics.quantiles(seen.seconds, n=100) if len(seen.seconds) > 1 else [math.nan] * 99
    return {
        "answers": len(seen.seconds),
        "p50_ms": round(cuts[49] * 1e3, 1),
        "p99_ms": round(cuts[98] * 1e3, 1),
        "lost": seen.lost,
        "refused": seen.refused,
    }


if __name__ == "__main__":
    main()
