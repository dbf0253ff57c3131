"""Structured output measured: `python -m cutline.bench.schemas [--minutes N] [--seed N]`, on one core.

Random bounded schemas, each asked of the demo's pair by worker alone, with drafts and in mode auto: how many answers
finish, how many of those a validator of JSON Schema takes, whether all modes say the same, and what the tokens that a
schema forces save. Then what a mask costs at a vocabulary of 150,000 tokens, beside a pass of a model of 135M
parameters; and how soon a hostile schema is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from unittest.mock import patch

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from cutline.cloud.engine.sessions.session import Session
from cutline.core.constraint import Constraint
from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import CardRequest, requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.law.grammars import Grammars, Matcher
from cutline.models.vocabulary import Vocabulary
from cutline.protos.messages import Finished
from cutline.testing.schemas import MAX_TOKENS, Schema, schema, valid
from cutline.testing.together import asking, ids, together

VOCABULARY = 150_000


class Asked(msgspec.Struct, frozen=True):
    """What came of one schema: the answers by mode, and the passes that worker took alone, with and without forcing."""

    answers: dict[Mode, Answer]
    passes: int
    unforced: int
    valid: bool | None

    @property
    def identical(self) -> bool:
        """Whether all modes said the same."""
        return len({ids(one) for one in self.answers.values()}) == 1


async def ask(agent: Agent, card: CardRequest, wanted: Schema) -> Asked:
    """Ask for an answer to a schema in each mode, and once more without what it forces."""
    how, ended = Sampling(constraint=Constraint.json_schema(wanted)), list[Finished]()
    finished = Session.finished

    def note(session: Session) -> Finished:
        ended.append(finished(session))
        return ended[-1]

    with patch.object(Session, "finished", note):
        answers = {
            mode: await agent.answer(asking(card, mode, sampling=how, max_tokens=MAX_TOKENS, store=False))
            for mode in (Mode.CLOUD, Mode.DRAFT, Mode.AUTO)
        }
        with patch.object(Matcher, "forced", lambda matcher: ()):
            await agent.answer(asking(card, Mode.CLOUD, sampling=how, max_tokens=MAX_TOKENS, store=False))
    whole = answers[Mode.CLOUD]
    return Asked(answers, ended[0].passes, ended[-1].passes, valid(whole.text, wanted) if whole.complete else None)


async def asked_for(minutes: float, seed: int) -> tuple[list[Asked], int]:
    """What came of as many random schemas as there is time for, and how many were refused before anything was asked."""
    found, refused, end, draw = list[Asked](), 0, time.monotonic() + 60 * minutes, random.Random(seed)  # noqa: S311
    cards = cycle(requests(Split.EVALUATION, 50, seed=seed))
    async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
        for card in cards:
            if time.monotonic() > end:
                break
            try:
                found.append(await ask(agent, card, schema(draw)))
            except InputError:
                refused += 1
    return found, refused


class WideVocabulary(Vocabulary):
    """A vocabulary of 150,000 tokens: every byte, and the commonest pieces of this machine's Python sources."""

    def __init__(self, size: int, stop: int) -> None:
        text = "".join(path.read_text(errors="ignore") for path in islice(_sources(), 150))
        pieces = Counter(text[at : at + length] for length in range(2, 9) for at in range(0, len(text) - length, 3))
        words = [piece.encode() for piece, _ in pieces.most_common(size)]
        singles = [bytes([value]) for value in range(256)]
        self._bytes = [*singles, *dict.fromkeys(word for word in words if word not in set(singles))][: size - 1]
        self._ids = {word: place for place, word in enumerate(self._bytes)}
        self.added = {"<end>": stop}

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; none of one that has no text."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """The longest token that fits, again and again."""
        left, found = text.encode(), list[int]()
        while left:
            size = next(size for size in range(min(32, len(left)), 0, -1) if left[:size] in self._ids)
            found.append(self._ids[left[:size]])
            left = left[size:]
        return tuple(found)


def _sources() -> Iterator[Path]:
    return iter(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))


def masks(seed: int, count: int = 40) -> tuple[list[float], list[float]]:
    """Milliseconds of each mask at a vocabulary of 150,000, along answers to random schemas; and those to compile."""
    stop = VOCABULARY - 1
    decoder = msgspec.structs.replace(Bundle.open(TARGET).manifest.decoder, vocabulary=VOCABULARY)
    manifest = msgspec.structs.replace(Bundle.open(TARGET).manifest, decoder=decoder, stop_tokens=(stop,))
    words = WideVocabulary(VOCABULARY, stop)
    grammars, draw, random_ = Grammars(lambda: words, manifest), random.Random(seed), np.random.default_rng(seed)  # noqa: S311
    logits = random_.normal(size=VOCABULARY).astype(np.float32)
    grammars.compiled(Constraint.choice(["once"]))  # which reads the vocabulary
    took, compiling = list[float](), list[float]()
    for _ in range(count):
        began = time.perf_counter()
        matcher = grammars.compiled(Constraint.json_schema(schema(draw))).matcher()
        compiling.append((time.perf_counter() - began) * 1e3)
        for _ in range(MAX_TOKENS):
            began = time.perf_counter()
            allowed = matcher.allowed()
            np.where(allowed, logits, -np.inf)
            took.append((time.perf_counter() - began) * 1e3)
            if allowed[stop]:
                break
            matcher.consume([int(draw.choice(np.flatnonzero(allowed)))])
    return took, compiling


def token_ms() -> float:
    """Milliseconds of a pass of one row through a model of 135M parameters with a head of 150,000, in float32."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model, cache, took = LlamaForCausalLM(shape).eval(), DynamicCache(config=shape), list[float]()
    with torch.inference_mode():
        model(torch.randint(0, VOCABULARY, (1, 256)), past_key_values=cache)
        for _ in range(12):
            began = time.perf_counter()
            model(torch.randint(0, VOCABULARY, (1, 1)), past_key_values=cache)
            took.append((time.perf_counter() - began) * 1e3)
    return median(took)


def hostile() -> dict[str, Callable[[], Constraint]]:
    """Schemas made to cost: none may take long, whether it is refused or served."""
    deep: Schema = {"type": "string"}
    for _ in range(2000):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"name{place}": {"type": "string"} for place in range(36_000)}}
    both = {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"$ref": "#/$defs/a"}}]}
    doubling = {f"d{place}": {"allOf": [{"$ref": f"#/$defs/d{place + 1}"}] * 2} for place in range(30)}
    return {
        "2000 deep": lambda: Constraint.json_schema(deep),
        "1 MB": lambda: Constraint.json_schema(wide),
        "20,000 values of an enum": lambda: Constraint.json_schema({"enum": [f"v{place}" for place in range(20_000)]}),
        "recursive": lambda: Constraint.json_schema({"$ref": "#/$defs/a", "$defs": {"a": both}}),
        "a reference to itself": lambda: Constraint.json_schema({"$ref": "#"}),
        "doubling references": lambda: Constraint.json_schema(
            {"$ref": "#/$defs/d0", "$defs": doubling | {"d30": {"type": "string"}}}
        ),
        "exponential pattern": lambda: Constraint.json_schema({"type": "string", "pattern": "^(a|a?)+(a|aa)+x{900}$"}),
        "counted repetition": lambda: Constraint.regex("((((a{0,99}){0,99}){0,99}){0,99}){0,99}"),
        "anyOf of anyOfs": lambda: Constraint.json_schema(_fan(5, 9)),
    }


def _fan(depth: int, width: int) -> Schema:
    if depth == 0:
        return {"type": "string", "maxLength": 900}
    return {"anyOf": [_fan(depth - 1, width if depth > 3 else 2) for _ in range(width if depth > 3 else 2)]}


def refusals(seed: int) -> dict[str, tuple[float, str]]:
    """Milliseconds of a processor until each hostile schema is refused, or its first mask is there; and what was said.

    The median of five. Of one that is served, also the longest of the masks along a random answer.
    """
    bundle = Bundle.open(TARGET)
    words = Vocabulary.open(bundle)
    found = dict[str, tuple[float, str]]()
    for name, make in hostile().items():
        took, said = list[float](), ""
        for _ in range(5):
            grammars = Grammars(lambda: words, bundle.manifest)
            grammars.compiled(Constraint.choice(["once"]))
            began = time.process_time()
            try:
                matcher = grammars.compiled(make()).matcher()
            except InputError as error:
                took.append((time.process_time() - began) * 1e3)
                said = str(error)
            else:
                took.append((time.process_time() - began) * 1e3)
                said = f"served; a mask takes {_longest(matcher, bundle.manifest.stop_tokens, seed):.1f} ms at most"
        found[name] = median(took), said
    return found


def _longest(matcher: Matcher, stops: Sequence[int], seed: int) -> float:
    """Milliseconds of the longest mask along a random answer, of which some may end as too complex."""
    draw, most = random.Random(seed), 0.0  # noqa: S311
    for _ in range(MAX_TOKENS):
        began = time.perf_counter()
        try:
            allowed = matcher.allowed()
        except InputError:
            return max(most, (time.perf_counter() - began) * 1e3)
        most = max(most, (time.perf_counter() - began) * 1e3)
        allowed[list(stops)] = False
        if not allowed.any():
            break
        matcher.consume([int(draw.choice(np.flatnonzero(allowed)))])
    return most


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="of random schemas")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    console = Console(width=110)
    found, refused = asyncio.run(asked_for(args.minutes, args.seed))
    ended = [one for one in found if one.valid is not None]
    table = Table(title=f"{len(found)} random schemas, each by worker alone, with drafts and in mode auto")
    for heading in ("", "of them"):
        table.add_column(heading, justify="right")
    drafted = [one.answers[Mode.DRAFT] for one in found]
    written = sum(len(one.answers[Mode.CLOUD].tokens) for one in found)
    rows = {
        "refused": f"{refused}",
        "finished": _share(len(ended), len(found)),
        "valid, of those": _share(sum(bool(one.valid) for one in ended), len(ended)),
        "the same in all modes": _share(sum(one.identical for one in found), len(found)),
        "tokens": f"{written}",
        "passes by the worker alone": f"{sum(one.passes for one in found)}",
        "and without what is forced": f"{sum(one.unforced for one in found)}",
        "drafted tokens that were right": _share(sum(a.accepted for a in drafted), sum(a.drafted for a in drafted)),
    }
    for label, told in rows.items():
        table.add_row(label, told)
    console.print(table)
    took, compiling = masks(args.seed)
    beside = token_ms()
    console.print(
        f"masks at {VOCABULARY:,} tokens: median {median(took):.3f} ms, mean {np.mean(took):.3f}, 99th "
        f"{np.quantile(took, 0.99):.3f}, most {max(took):.2f}; to compile {median(compiling):.1f}, most "
        f"{max(compiling):.1f}"
    )
    console.print(f"a token of a model of 135M: {beside:.1f} ms, of which a mask is {np.mean(took) / beside:.1%}")
    for name, (ms, said) in refusals(args.seed).items():
        console.print(f"{name}: {ms:.1f} ms, {said}")


def _share(of: int, all_: int) -> str:
    return f"{of} of {all_} ({of / max(1, all_):.1%})"


if __name__ == "__main__":
    main()
