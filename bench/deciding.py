"""What planning adds to a request: `python -m cutline.bench.deciding`.

Times the agent's planner on the demo's models, with profiles that come along: the plan of a request of a kind that it
has met, of one that it has not, and learning from an answer. Nothing is answered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from rich.console import Console

from cutline.core.conversation import question
from cutline.core.request import Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.link import load_link
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.generation import Generation, Prepared, SentDraft
from cutline.edge.generation.result import DraftedBy
from cutline.edge.planning.plan_inputs import setting_of
from cutline.edge.planning.planner import Planner
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.models.vocabulary import Vocabulary
from cutline.protos.messages import Opened


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    drafter, target = Bundle.open(DRAFTER), Bundle.open(TARGET)
    planner = Planner(setting_of(drafter, target, edge="raspberry-pi-5", cloud="l4"), load_link("4g"))
    asked = prepared(drafter)
    # Kinds differ in the length of the prompt, here by more than what is taken for alike.
    new = times(lambda index: planner.plan(replace(asked, prompt=asked.prompt[:1] * 2 ** (5 + index)), ready=()), 8)
    known = times(lambda _: planner.plan(asked, ready=()), runs)
    chosen = planner.plan(asked, ready=())
    learning = times(lambda _: planner.learn(chosen, asked, answered(), 0.08), runs)
    console = Console()
    console.print(f"plan of a request, its kind met before: median {known:.2f} ms")
    console.print(f"plan of a request, its kind new: median {new:.2f} ms")
    console.print(f"learning from an answer, after it: median {learning:.2f} ms")


def times(call: Callable[[int], object], runs: int) -> float:
    """The median of the milliseconds that calls take."""
    taken = []
    for index in range(runs):
        began = time.perf_counter()
        call(index)
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e3


def prepared(drafter: Bundle) -> Prepared:
    """A question of the demo's."""
    request = next(requests(Split.EVALUATION, 1, seed=1))
    image = decode_image(request.image)
    pixels = drafter.manifest.family.preprocess(image)
    prompt = PromptBuilder.open(drafter).build([question(request.question.text)], [pixels.grid]).ids
    asked = Request.about(request.image, request.question.text)
    return Prepared(request=asked, images=(image,), pixels=(pixels,), prompt=prompt, asked=prompt, limit=64)


def answered() -> Generation:
    """An answer of ten tokens from a worker."""
    sent = SentDraft(0, (9,) * 10, DraftedBy.DRAFTER)
    progress = Generation(0.0, Transcript(Vocabulary.open(Bundle.open(DRAFTER))), tokens=[9] * 10, drafts=[sent])
    progress.sent = [(0.0, 300), (0.001, 4000)]
    progress.opened = (0.06, Opened("it", 0.01, 0.002, 0.0))
    return progress


if __name__ == "__main__":
    main()
