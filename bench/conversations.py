"""How good the demo's models are beyond one question about one card: `python -m cutline.bench.conversations`.

For each shape of a request, the share of right answers of the target (unsplit, by transformers) and of the drafter
(as the agent runs it), by kind of question; and how often what is no question about a card is refused. Digits,
photographs, system turns and talk are such as training has not seen. Earlier answers are each model's own.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cutline.cli.setting import open_drafter, open_target
from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.sampling import Sampling
from cutline.demo.cards import Card, Split
from cutline.demo.questions import KINDS
from cutline.demo.reference import Reference
from cutline.demo.requests import png
from cutline.demo.training import wordings
from cutline.demo.training.conversations import Dialogue, DialogueTurn, question_about
from cutline.demo.training.scenes import Kind, Scenes, draw
from cutline.demo.training.wordings import REFUSAL
from cutline.edge.inference.drafter import Drafter
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

MAX_TOKENS = 64
REFUSED = "refuse"

Answerer = Callable[[tuple[Message, ...], tuple[bytes, ...]], str]


def shapes(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Scenes, Dialogue]]:
    """The name, pictures and turns of each conversation; its last turn is what counts. `count` of a shape and kind."""
    for kind in KINDS * count:
        scenes = draw((Kind.CARD, Kind.CARD), Split.EVALUATION, rng)
        first, second = scenes.card(0), scenes.card(1)
        others = [str(one) for one in rng.choice([one for one in KINDS if one != kind], 2, replace=False)]
        before, between = (_turn(other, first, rng) for other in others)
        shown = replace(before, pictures=(0,))
        asked = _turn(kind, first, rng, pictures=(0,))
        later = replace(asked, pictures=())
        system = wordings.system(rng, held_back=True)
        for name, conversation in (
            ("picture, text", Dialogue(None, (asked,))),
            ("text, picture", Dialogue(None, (replace(asked, text_first=True),))),
            ("system turn", Dialogue(system, (asked,))),
            ("second question", Dialogue(None, (shown, later))),
            ("third question", Dialogue(None, (shown, between, later))),
            ("two pictures", Dialogue(None, (_turn(kind, second, rng, pictures=(0, 1)),))),
            ("other wording", Dialogue(None, (_turn(kind, first, rng, pictures=(0,), phrased=True),))),
            ("talk", Dialogue(None, (_refused(wordings.talk(rng, held_back=True), 0),))),
            ("talk without a picture", Dialogue(None, (_refused(wordings.talk(rng, held_back=True)),))),
        ):
            yield name, scenes, conversation
        distracted = draw((Kind.DISTRACTED,), Split.EVALUATION, rng)
        yield "distractors", distracted, Dialogue(None, (_turn(kind, distracted.card(0), rng, pictures=(0,)),))
        for name, other in (("blank card", Kind.BLANK), ("photograph or drawing", Kind.STRANGE)):
            yield name, draw((other,), Split.EVALUATION, rng), Dialogue(None, (_refused(asked.text, 0),))


def _turn(
    kind: str, card: Card, rng: np.random.Generator, *, pictures: tuple[int, ...] = (), phrased: bool = False
) -> DialogueTurn:
    text, answer = question_about(card, kind, rng, phrased=phrased)
    return DialogueTurn(pictures, text_first=False, text=text, answer=answer, kind=kind)


def _refused(text: str, *pictures: int) -> DialogueTurn:
    return DialogueTurn(pictures, text_first=False, text=text, answer=REFUSAL, kind=REFUSED)


def answered(ask: Answerer, scenes: Scenes, conversation: Dialogue) -> bool:
    """Whether `ask` gives the right last answer, its own answers being those before."""
    messages: list[Message] = []
    if conversation.system is not None:
        messages.append(Message("system", (TextPart(conversation.system),)))
    images: list[bytes] = []
    said = ""
    for turn in conversation.turns:
        shown = tuple(ImagePart() for _ in turn.pictures)
        words = (TextPart(turn.text),)
        messages.append(Message("user", (*words, *shown) if turn.text_first else (*shown, *words)))
        images += [png(scenes.batch.pixels[index]) for index in turn.pictures]
        said = ask(tuple(messages), tuple(images))
        messages.append(Message("assistant", (TextPart(said),)))
    return said == conversation.turns[-1].answer


def by_drafter(bundle: Bundle) -> Answerer:
    """The drafter's greedy answer."""
    drafter, prompts = Drafter.open(bundle, threads=1), PromptBuilder.open(bundle)

    def ask(messages: tuple[Message, ...], images: tuple[bytes, ...]) -> str:
        pixels = [bundle.manifest.family.preprocess(decode_image(image)) for image in images]
        prompt = prompts.build(messages, [one.grid for one in pixels]).ids
        drafted = drafter.converse(prompt, pixels, Sampling()).draft((), MAX_TOKENS)
        return prompts.vocabulary.decode(tuple(one.token for one in drafted)).strip()

    return ask


def by_target(reference: Reference) -> Answerer:
    """The target's greedy answer, by transformers."""

    def ask(messages: tuple[Message, ...], images: tuple[bytes, ...]) -> str:
        return reference.text(reference.converse(messages, images, max_tokens=MAX_TOKENS))

    return ask


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=50, help="of each shape and kind of question")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the shares as JSON")
    args = parser.parse_args()
    asking = {"target": by_target(Reference(open_target(None))), "drafter": by_drafter(open_drafter(None))}
    right: dict[tuple[str, str], dict[str, list[bool]]] = {}
    everything = list(shapes(args.cards, np.random.default_rng(args.seed)))
    for shape, scenes, conversation in track(everything, "asking both", console=Console(stderr=True)):
        for model, ask in asking.items():
            row = right.setdefault((shape, model), defaultdict(list))
            row[conversation.turns[-1].kind].append(answered(ask, scenes, conversation))
    if args.json:
        print(
            json.dumps(
                [{"shape": s, "model": m, "right": {k: fmean(v) for k, v in r.items()}} for (s, m), r in right.items()]
            )
        )
        return
    table = Table(title=f"Right answers, {args.cards} evaluation cards a shape and kind")
    for heading in ("shape", "model", *KINDS, "all"):
        table.add_column(heading, justify="left" if heading in ("shape", "model") else "right")
    for (shape, model), row in right.items():
        cells = [f"{fmean(row[kind]):.3f}" if row[kind] else "" for kind in KINDS]
        table.add_row(shape, model, *cells, f"{fmean([one for ones in row.values() for one in ones]):.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
