"""A camera that sees a scene for a while, then another: what an answer takes with drafts from answers of late.

The same question is asked about cards of the demo, each of them several times with other noise in the picture, through
a link as it is between two data centres. Told are the passes of the target for a token, the share of drafted tokens
that were right, and the time of an answer: without drafts, with the drafter's, and with those of answers of late too.

    python -m cutline.bench.still_scene --scenes 20 --frames 6
"""

from __future__ import annotations

import argparse
import asyncio
import io
from statistics import median

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer
from cutline.models.bundle import Bundle

QUESTION = "Describe the card."
WAYS = {
    "no drafts": (Mode.CLOUD, False),
    "the drafter's": (Mode.DRAFT, False),
    "and of answers of late": (Mode.DRAFT, True),
}


async def run(scenes: int, frames: int, noise: int) -> dict[str, list[Answer]]:
    """The answers in each way."""
    rng, found = np.random.default_rng(1), dict[str, list[Answer]]()
    cards = [one.image for one in requests(Split.EVALUATION, scenes, seed=5)][::6]
    shots = [grainy(card, noise, rng) for card in cards[:scenes] for _ in range(frames)]
    target = Bundle.open(TARGET)
    async with serve(target, WorkerOptions(slots=2, context=target.manifest.decoder.context)) as address:
        for name, (mode, store) in WAYS.items():
            async with Agent(Bundle.open(DRAFTER), worker=address, threads=1) as agent:
                asked = (Request.about(one, QUESTION, mode=mode, max_tokens=64, store=store) for one in shots)
                found[name] = [await agent.answer(one) for one in asked]
    return found


def grainy(picture: bytes, noise: int, rng: np.random.Generator) -> bytes:
    """A picture with other noise, of so many levels of brightness at most, as the next frame of a camera has it."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(np.int16)
    shot = np.clip(pixels + rng.integers(-noise, noise + 1, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(shot).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=6, help="of each scene")
    parser.add_argument("--noise", type=int, default=4, help="levels of brightness, of 255")
    args = parser.parse_args()
    found = asyncio.run(run(args.scenes, args.frames, args.noise))
    texts = {name: [answer.text for answer in answers] for name, answers in found.items()}
    table = Table(title=f"{args.scenes} scenes of {args.frames} frames")
    for heading in ("drafts", "passes an answer", "drafted right", "of answers of late", "ms", "the target's own"):
        table.add_column(heading, justify="left" if heading == "drafts" else "right")
    for name, answers in found.items():
        tokens = sum(len(one.tokens) for one in answers)
        drafted = sum(one.drafted for one in answers)
        table.add_row(
            name,
            f"{sum(one.passes for one in answers) / len(answers):.1f}",
            f"{sum(one.accepted for one in answers) / max(drafted, 1):.0%}",
            f"{sum(one.recent for one in answers) / tokens:.0%}",
            f"{median(one.latency_ms for one in answers):.1f}",
            "all" if texts[name] == texts["no drafts"] else "NOT ALL",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
