"""What it costs to have a drafter of other tokens: how much of what is offered is right, and the time of a token.

The drafter says the target's own text, so that every wrong token is the retokenization's. Tokenizers of four kinds are
trained on the documentation; give tokenizer.json files of published models to measure those instead.

    python -m cutline.bench.retokenization --texts 200
"""

from __future__ import annotations

import argparse
import time
from itertools import permutations
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from cutline.models.vocabulary import Vocabulary
from cutline.testing.models.drafters import PROSE, Says, accepted, drafting, mixed
from cutline.testing.models.tokenizers import END, KINDS, vocabulary


def main() -> None:
    """Print a row for each pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("tokenizers", nargs="*", type=Path, help="tokenizer.json files, two or more")
    parser.add_argument("--texts", type=int, default=50, help="paragraphs and mixed texts for each pair")
    args = parser.parse_args()
    known = {str(path): _read(path) for path in args.tokenizers} or {kind: vocabulary(kind) for kind in KINDS}
    print(f"{args.texts} paragraphs of the documentation, {args.texts} texts of mixed scripts")
    print(f"{'drafter':>16} {'target':>16} {'prose':>8} {'mixed':>8} {'µs a token':>12}")
    for own, target in permutations(known, 2):
        rng, words = np.random.default_rng(1), (known[own], known[target])
        prose = rng.choice(PROSE, min(args.texts, len(PROSE)), replace=False).tolist()
        shares = accepted(*words, prose, rng), accepted(*words, [mixed(rng, 60) for _ in range(args.texts)], rng)
        took = _seconds(*words, "\n".join(prose[:20]))
        shown = [Path(name).parent.name or name for name in (own, target)]
        print(f"{shown[0]:>16} {shown[1]:>16} {shares[0]:>8.1%} {shares[1]:>8.1%} {took * 1e6:>12.0f}")


def _read(path: Path) -> Vocabulary:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return Vocabulary(tokenizer)


def _seconds(own: Vocabulary, target: Vocabulary, text: str) -> float:
    """Seconds that retokenizing takes for each token of the drafter."""
    says = Says(own, text)
    began = time.perf_counter()
    alone = sum(1 for _ in says.draft((), len(says.tokens)))
    between = time.perf_counter()
    for _ in drafting(own, target, says).draft((), 10**6):
        pass
    return (time.perf_counter() - between - (between - began)) / alone


if __name__ == "__main__":
    main()
