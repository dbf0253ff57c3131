"""The gate's promise when the world drifts away from its calibration, with audits and without.

Cards of the demo are shown as a camera might see them that was moved, or whose picture got worse. For each such shift
the drafter and the target are asked once about every card; what the gate would keep, and whether that is the target's
answer, is then replayed many times in different orders, with the share of kept answers audited that is asked for. Told
are the share of answers kept, and of those kept the share that differs from the target's: of all of them without
audits, and with audits the share of all answers that was kept and differs, as the group is kept more strictly, or shut.

    python -m cutline.bench.shift --cards 300 --audit 0.1
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.gate import MAX_TOKENS, Gate, open_gate
from cutline.models.bundle import Bundle

Shift = Callable[[Image.Image, np.random.Generator], Image.Image]


def grainy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With noise in every pixel."""
    pixels = np.asarray(picture).astype(np.int16) + rng.integers(-60, 61, (*picture.size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def dim(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In a yellow light that fades."""
    return Image.fromarray((np.asarray(picture) * np.array([0.6, 0.55, 0.3])).astype(np.uint8))


SHIFTS: dict[str, Shift] = {
    "as calibrated": lambda picture, rng: picture,
    "blurred": lambda picture, rng: picture.filter(ImageFilter.GaussianBlur(1.2)),
    "grainy": grainy,
    "in yellow light": dim,
    "turned by 15 degrees": lambda picture, rng: picture.rotate(15, Image.Resampling.BILINEAR),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gate would keep of the answers to some questions, and which of the answers are the target's."""

    kept: NDArray[np.bool_]
    sure: NDArray[np.float64]
    agreed: NDArray[np.bool_]


async def look(shift: Shift, cards: int, gate: Gate) -> tuple[str, Seen]:
    """The group that is asked in, and what was seen in it."""
    rng, name = np.random.default_rng(1), ""
    kept, confidences, agreed = list[bool](), list[float](), list[bool]()
    target = Bundle.open(TARGET)
    settings = AgentSettings(fresh=True)
    async with (
        serve(target, WorkerOptions(slots=2, context=target.manifest.decoder.context)) as address,
        Agent(Bundle.open(DRAFTER), worker=address, threads=1, settings=settings) as agent,
    ):
        for one in requests(Split.EVALUATION, cards, seed=9):
            if one.question.kind not in ("read", "describe"):
                continue
            file = io.BytesIO()
            shift(Image.open(io.BytesIO(one.image)).convert("RGB"), rng).save(file, "PNG")
            asked = [
                Request.about(file.getvalue(), one.question.text, mode=mode, max_tokens=MAX_TOKENS)
                for mode in (Mode.EDGE, Mode.CLOUD)
            ]
            ours, theirs = [await agent.answer(request) for request in asked]
            name = group_of(asked[0])
            group = gate.of(name)
            sure = ours.confidence is not None and group is not None and ours.confidence >= group.threshold
            kept.append(sure and ours.complete)
            confidences.append(ours.confidence or 0.0)
            agreed.append([token.id for token in ours.tokens] == [token.id for token in theirs.tokens])
    return name, Seen(np.array(kept), np.array(confidences), np.array(agreed))


def replay(seen: Seen, group: str, gate: Gate, *, audit: float, answers: int, seed: int) -> tuple[int, int, int, bool]:
    """How many of so many answers are kept, how many of those differ, and after how many audits fewer were, or 0.

    And whether none was kept any more at the end.
    """
    rng = np.random.default_rng(seed)
    audits, promised = Audits(share=audit, seed=seed), gate.groups[group]
    kept = wrong = done = first = 0
    for number, index in enumerate(rng.integers(0, len(seen.kept), answers)):
        if not seen.kept[index]:
            continue
        right, sure, name = bool(seen.agreed[index]), float(seen.sure[index]), str(number)
        if not audits.keeps(group, promised, sure):
            audits.note_unkept(group, gate, name, confidence=sure, agreed=right)
            continue
        kept, wrong = kept + 1, wrong + (not right)
        if audits.due(group, name):
            audits.note(group, gate, confidence=sure, agreed=right)
            done += 1
            first = first or (done if not audits.keeps(group, promised, promised.threshold) else 0)
    return kept, wrong, first, not audits.keeps(group, promised, 1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cards", type=int, default=300)
    parser.add_argument("--answers", type=int, default=4000, help="of a replay")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--audit", type=float, default=0.1)
    args = parser.parse_args()
    logging.getLogger("cutline").setLevel(logging.ERROR)  # what is shut is told in the table
    gate = open_gate(Bundle.open(DRAFTER))
    table = Table(title=f"{args.replays} replays of {args.answers} answers, {args.audit:.0%} of those kept are audited")
    headings = (
        "shift",
        "promised",
        "kept",
        "of those differ",
        "with audits: kept",
        "of all differ",
        "stricter",
        "after",
        "shut at last",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "shift" else "right")
    for name, shift in SHIFTS.items():
        group, seen = asyncio.run(look(shift, args.cards, gate))
        ways = {"audit": args.audit, "answers": args.answers}
        found = np.array([replay(seen, group, gate, seed=seed, **ways) for seed in range(args.replays)])
        stricter = found[found[:, 2] > 0, 2]
        risk = gate.groups[group].risk
        table.add_row(
            name,
            f"{risk:.0%}",
            f"{seen.kept.mean():.1%}",
            f"{1 - seen.agreed[seen.kept].mean():.1%}" if seen.kept.any() else "",
            f"{found[:, 0].mean() / args.answers:.1%}",
            f"{found[:, 1].mean() / args.answers:.2%}",
            f"{len(stricter) / args.replays:.0%}",
            f"{np.median(stricter):.0f} audits" if len(stricter) else "",
            f"{found[:, 3].mean():.0%}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
