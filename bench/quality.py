"""How good the demo's models are on evaluation digits: `python -m cutline.bench.quality [--cards N]`.

Prints, for the target (unsplit, by transformers) and the drafter (as the agent runs it), exact matches by kind of
question; how often the drafter foresees the target's next token, given the target's answer so far; and what the gate
keeps, and how often that agrees with the target.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cutline.cli.setting import open_drafter, open_target
from cutline.core.conversation import question
from cutline.core.sampling import Sampling
from cutline.demo.cards import Split
from cutline.demo.questions import KINDS
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import open_gate
from cutline.edge.inference.drafter import Drafter
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

MAX_TOKENS = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=300, help="cards, six questions each")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    target, bundle = open_target(None), open_drafter(None)
    reference, drafter = Reference(target), Drafter.open(bundle, threads=1)
    prompts, gate, greedy = PromptBuilder.open(bundle), open_gate(bundle).of(PLAIN), Sampling()
    seen: dict[str, dict[str, list[bool]]] = {
        name: defaultdict(list) for name in ("target", "drafter", "token", "kept")
    }
    agreed = []
    single = []
    for request in track(list(requests(Split.EVALUATION, args.cards, args.seed)), "asking both"):
        kind, right = request.question.kind, request.question.answer
        truth = reference.answer(request.image, request.question.text, max_tokens=MAX_TOKENS)
        pixels = bundle.manifest.family.preprocess(decode_image(request.image))
        prompt = prompts.build([question(request.question.text)], [pixels.grid]).ids
        drafting = drafter.converse(prompt, [pixels], greedy)
        drafted = list(drafting.draft((), MAX_TOKENS))
        ids = tuple(one.token for one in drafted)
        seen["target"][kind].append(reference.text(truth) == right)
        seen["drafter"][kind].append(reference.text(ids) == right)
        seen["token"][kind] += (drafting.logits(truth[:-1]).argmax(axis=-1) == np.array(truth)).tolist()
        if kind == "read" and len(request.card.digits) == 1:
            single.append(seen["target"][kind][-1])
        kept = gate is not None and gate.keeps(drafted, bundle.manifest.stop_tokens)
        seen["kept"][kind].append(kept)
        if kept:
            agreed.append(ids == truth)
    table = Table(title=f"{args.cards} evaluation cards, six questions each")
    for heading in ("", *KINDS, "all"):
        table.add_column(heading, justify="right")
    rows = {
        "target": "target right",
        "drafter": "drafter right",
        "token": "target's token foreseen",
        "kept": "kept by gate",
    }
    for name, label in rows.items():
        by_kind = seen[name]
        everything = [value for values in by_kind.values() for value in values]
        table.add_row(label, *(f"{fmean(by_kind[kind]):.3f}" for kind in KINDS), f"{fmean(everything):.3f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"target, cards of one digit read right: {fmean(single):.3f} of {len(single)}")
    console.print(f"kept answers equal to the target's: {fmean(agreed) if agreed else 0:.3f} of {len(agreed)}")


if __name__ == "__main__":
    main()
