"""Whether more than the answer's probability would let the gate keep more: the curve of both.

The demo's drafter and target are asked about cards as the shifts of `shift.py` show them, all mixed. Of each answer the
drafter gives its probability, and beside it its least likely token, the entropy of its next tokens, and how far the
picture's rows lie from those of the cards that were calibrated on. A logistic model of them all is fitted to a third of
the cards. For each risk, a threshold on its score and one on the probability are found on the second third, as the gate
finds its own, and told is what they keep of the last third, and how much of that differs.

    python -m cutline.bench.gate_features --cards 150
"""

from __future__ import annotations

import argparse
import asyncio
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from cutline.bench.shift import SHIFTS
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.conversation import question
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.gate import MAX_TOKENS, calibrate_group
from cutline.edge.inference.drafter import Drafter
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

FEATURES = ("log probability", "least likely token", "mean entropy", "largest entropy", "distance", "tokens")
KINDS = ("read", "describe")
RISKS = (0.02, 0.05, 0.1)
RIDGE = 1e-2

Floats = NDArray[np.float64]


async def look(cards: int) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """The features (n, 6) of answers with the picture's embedding summed up as its distance, which agree, and of which
    card each is. Distances are from the first third of the cards.
    """
    ours, theirs = Bundle.open(DRAFTER), Bundle.open(TARGET)
    drafter, tower = Drafter.open(ours, threads=1), VisionSpan.open(ours, "decoder.0", threads=1)
    prompts, rng = PromptBuilder.open(ours), np.random.default_rng(1)
    rows, agreed, numbers, embedded = list[list[float]](), list[bool](), list[int](), list[Floats]()
    async with (
        serve(theirs, WorkerOptions(slots=2, context=theirs.manifest.decoder.context)) as address,
        Agent(ours, worker=address, threads=1, settings=AgentSettings(fresh=True)) as agent,
    ):
        for number, one in enumerate(requests(Split.EVALUATION, cards, seed=21)):
            if one.question.kind not in KINDS:
                continue
            for shift in SHIFTS.values():
                file = io.BytesIO()
                shift(Image.open(io.BytesIO(one.image)).convert("RGB"), rng).save(file, "PNG")
                pixels = ours.manifest.family.preprocess(decode_image(file.getvalue()))
                prompt = prompts.build([question(one.question.text)], [pixels.grid]).ids
                drafting = drafter.converse(prompt, [pixels], Sampling())
                drafted = list(drafting.draft((), MAX_TOKENS))
                tokens = [token.token for token in drafted]
                logs, entropies = np.log([token.probability for token in drafted]), _entropies(drafting.logits(tokens))
                rows.append([logs.sum(), logs.min(), entropies.mean(), entropies.max(), 0.0, len(tokens)])
                embedded.append(tower(pixels.values, [pixels.grid]).mean(0, dtype=np.float64))
                asked = Request.about(file.getvalue(), one.question.text, mode=Mode.CLOUD, max_tokens=MAX_TOKENS)
                agreed.append([token.id for token in (await agent.answer(asked)).tokens] == tokens)
                numbers.append(number // 6)
    features, cards_of = np.array(rows), np.array(numbers)
    features[:, FEATURES.index("distance")] = _distances(np.array(embedded), cards_of < cards // 3)
    return features, np.array(agreed), cards_of


def _entropies(logits: NDArray[np.float32]) -> Floats:
    wide = logits[:-1].astype(np.float64)
    logs = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    return np.asarray(-(np.exp(logs) * logs).sum(1))


def _distances(embedded: Floats, known: NDArray[np.bool_]) -> Floats:
    """Mahalanobis distances from those that are known, with a ridge on their covariance."""
    near = embedded[known]
    covariance = np.cov(near.T) + RIDGE * np.eye(embedded.shape[1])
    off = embedded - near.mean(0)
    return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", off, np.linalg.inv(covariance), off)))


def fitted(features: Floats, agreed: NDArray[np.bool_]) -> Floats:
    """The weights (features + 1) of a logistic model with a ridge."""
    wide, signs = np.c_[features, np.ones(len(features))], np.where(agreed, 1.0, -1.0)

    def loss(weights: Floats) -> float:
        return float(np.logaddexp(0.0, -signs * (wide @ weights)).mean() + RIDGE * (weights[:-1] ** 2).sum())

    return np.asarray(minimize(loss, np.zeros(wide.shape[1])).x)


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cards", type=int, default=150)
    args = parser.parse_args()
    features, agreed, cards = asyncio.run(look(args.cards))
    thirds = [cards * 3 // args.cards == place for place in range(3)]
    scaled = (features - features[thirds[0]].mean(0)) / features[thirds[0]].std(0)
    weights = fitted(scaled[thirds[0]], agreed[thirds[0]])
    scores = {"answer's probability": features[:, 0], "all features": np.c_[scaled, np.ones(len(scaled))] @ weights}
    table = Table(title=f"{len(agreed)} answers, {agreed.mean():.1%} agree; thresholds of a third, told of another")
    for heading in ("risk", *(f"{name}: {what}" for name in scores for what in ("kept", "of those differ"))):
        table.add_column(heading, justify="right")
    for risk in RISKS:
        cells = []
        for score in scores.values():
            group = calibrate_group(score[thirds[1]].tolist(), agreed[thirds[1]].tolist(), risk=risk)
            kept = score[thirds[2]] >= group.threshold if group.is_open else np.zeros(thirds[2].sum(), bool)
            cells += [f"{kept.mean():.1%}", f"{1 - agreed[thirds[2]][kept].mean():.1%}" if kept.any() else ""]
        table.add_row(f"{risk:.0%}", *cells)
    console = Console(width=140)
    console.print(table)
    told = ", ".join(f"{name} {weight:+.2f}" for name, weight in zip(FEATURES, weights[:-1], strict=True))
    console.print(f"weights of scaled features: {told}")


if __name__ == "__main__":
    main()
