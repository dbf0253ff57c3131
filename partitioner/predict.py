"""Predicts the cost of every choice from terms and conditions, by closed forms over arrays, for each request anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cutline.partitioner.answering import FRAME_BYTES, answering, sending
from cutline.partitioner.cost import CLOSING_BYTES, CONFIRMED_BYTES, Terms
from cutline.partitioner.plan import PARTS, Conditions, Plan
from cutline.partitioner.spans import Floats

STREAM_BYTES = 160  # of a session's headers, on a connection that had sessions before


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The mean cost of a request for `n` choices; `parts` (len(PARTS), n) in seconds add up to `latency` (n,).

    `slowest` is the latency of a request that the gate escalates; `energy` is NaN if the device's power is unknown.
    """

    parts: Floats
    latency: Floats
    ttft: Floats
    slowest: Floats
    energy: Floats
    bytes_up: Floats
    bytes_down: Floats
    cloud: Floats
    rounds: Floats


def predict(terms: Terms, now: Conditions) -> Prediction:
    """The cost of every choice under the conditions `now`."""
    more, after = terms.answer_tokens - 1, answering(terms, now)
    asks = terms.asks.astype(float)
    asked = np.where(terms.gated, 1 - terms.kept, asks)  # share of requests that the worker gets
    drafted_whole = np.where(terms.gated | ~terms.asks, terms.drafter.first + more * terms.drafter.token, 0.0)
    sent, lost = sending(terms.upload + STREAM_BYTES, 2, now)
    closing = (CLOSING_BYTES + CONFIRMED_BYTES + 3 * FRAME_BYTES) / now.downlink
    of_asked = {
        "prepare": terms.packing,
        "edge": terms.edge_prefill + after.edge,
        "drafter": after.drafter,
        "upload": sent + after.upload,
        "round trips": now.rtt + terms.overheads.session + lost + after.trip,
        "queue": now.queue + after.queue,
        "cloud prefill": terms.cloud_prepare + terms.cloud_prefill,
        "decode": after.decode,
        "download": (closing + terms.overheads.closing) * asks,
    }
    parts = np.stack([of_asked[part] for part in PARTS])
    first = parts.sum(axis=0) - after.seconds - terms.overheads.closing * asks
    longer = terms.gated * (terms.passed_tokens - terms.answer_tokens) * terms.drafter.token
    slowest = terms.prepare + drafted_whole + longer + asks * parts.sum(axis=0)
    parts *= asked
    parts[PARTS.index("prepare")] += terms.prepare
    parts[PARTS.index("drafter")] += drafted_whole
    latency: Floats = parts.sum(axis=0)
    # The device alone shows each token at once; the gate needs the whole answer first.
    shown = np.where(terms.gated, drafted_whole, np.where(terms.asks, 0.0, terms.drafter.first))
    return Prediction(
        parts=parts,
        latency=latency,
        ttft=terms.prepare + shown + asked * first,
        slowest=slowest,
        energy=_energy(terms, latency, terms.prepare + drafted_whole + asked * (of_asked["edge"] + after.drafted)),
        bytes_up=asked * (terms.upload + after.messages * terms.step_upload),
        bytes_down=asked * (CLOSING_BYTES + terms.tokens * terms.token_down),
        cloud=asked * (terms.cloud_prefill + after.cloud),
        rounds=asked * (1 + after.trips),
    )


def corrected(found: Prediction, factors: Floats) -> Prediction:
    """A prediction with its latencies multiplied by `factors` (n,)."""
    return replace(
        found,
        parts=found.parts * factors,
        latency=found.latency * factors,
        ttft=found.ttft * factors,
        slowest=found.slowest * factors,
    )


def plan_of(terms: Terms, found: Prediction, index: int) -> Plan:
    """The plan of the choice with this `index`."""
    choice, energy = terms.choices[index], found.energy[index]
    agreement, leak = terms.agreement[index], terms.leak[index]
    return Plan(
        mode=choice.mode,
        cut=choice.cut,
        wire=choice.wire,
        drafting=choice.drafting,
        latency_ms=float(found.latency[index]) * 1e3,
        ttft_ms=float(found.ttft[index]) * 1e3,
        slowest_ms=float(found.slowest[index]) * 1e3,
        energy_j=None if np.isnan(energy) else float(energy),
        bytes_up=float(found.bytes_up[index]),
        bytes_down=float(found.bytes_down[index]),
        cloud_ms=float(found.cloud[index]) * 1e3,
        memory_bytes=float(terms.memory[index]),
        rounds=float(found.rounds[index]),
        agreement=None if np.isnan(agreement) else float(agreement),
        exact=bool(terms.exact[index]),
        leak=None if np.isnan(leak) else float(leak),
        parts_ms={part: float(found.parts[row, index]) * 1e3 for row, part in enumerate(PARTS)},
    )


def _energy(terms: Terms, latency: Floats, busy: Floats) -> Floats:
    """Joules of the device: idle power all the time, plus the power of load while it is busy."""
    if terms.loaded_watts is None:
        return np.full(len(latency), np.nan)
    load = max(terms.loaded_watts - terms.idle_watts, 0.0)
    return terms.idle_watts * latency + load * np.minimum(busy, latency)
