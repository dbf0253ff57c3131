"""The tokens after the first: drafts that are verified, a worker that decodes on meanwhile, or round trips.

What the worker does follows `cloud/engine/cost_model.py` and `cloud/engine/sequence.py`, what the agent does
`edge/offload/backends/worker_session.py`; docs/explanation/planning.md derives the formulas. A faster link never makes
any of them larger.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

import numpy as np

from cutline.partitioner.acceptance import believed_rate, confirmed_tokens, proper, right_tokens, worth_verifying
from cutline.partitioner.cost import CONFIRMED_BYTES, Terms
from cutline.partitioner.plan import Conditions
from cutline.partitioner.spans import Floats

SEGMENT = 1460  # bytes that are lost at once
FRAME_BYTES = 14  # of gRPC and HTTP/2 around a message: on the wire, but not among a session's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """What the tokens after the first cost each of `n` choices: seconds by part, and beside them.

    `cloud` are seconds of the worker's passes, `drafted` of the drafter's work, waited for or not. `messages` of drafts
    follow the opening; `trips` of them are waited for.
    """

    drafter: Floats
    edge: Floats
    upload: Floats
    trip: Floats
    queue: Floats
    decode: Floats
    cloud: Floats
    drafted: Floats
    messages: Floats
    trips: Floats

    @property
    def seconds(self) -> Floats:
        """What they add to the latency."""
        return self.drafter + self.edge + self.upload + self.trip + self.queue + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drafts:
    """What the drafts of every choice do, in seconds.

    `late`: from the end of the prefill to the first of them; `early`: from their coming to the worker's being ready.
    `wired` and `lost`: on the wire, and by losses. `making`: one anew after a rejection. `verifying`: passes a token.
    """

    late: Floats
    early: Floats
    wired: Floats
    lost: Floats
    making: Floats
    verifying: Floats

    def behind(self, terms: Terms) -> Floats:
        """Seconds of waiting for drafts behind the first message, where making or sending them takes longest."""
        length = np.maximum(terms.length, 1)
        slower = np.maximum(np.maximum(self.making, self.wired) / length - self.verifying, 0.0)
        waiting: Floats = slower * np.maximum(terms.tokens - 1 - length, 0)
        return waiting


def answering(terms: Terms, now: Conditions) -> Answering:
    """The tokens after the first, for every choice."""
    drafts = _drafts(terms, now)
    deep, shallow = _inside_decoder(terms, now, drafts), _race(terms, now, drafts)
    names = [field.name for field in fields(Answering)]
    return Answering(**{name: np.where(terms.deep, getattr(deep, name), getattr(shallow, name)) for name in names})


def sending(size: Floats, messages: int, now: Conditions) -> tuple[Floats, Floats]:
    """Seconds that `size` bytes in `messages` are on the wire up, and what losses add: a round trip if any is lost."""
    size = size + messages * FRAME_BYTES
    lost = 1 - (1 - now.loss) ** np.ceil(size / SEGMENT) if now.loss else np.zeros(len(size))
    return size / now.uplink, now.rtt * lost


def _drafts(terms: Terms, now: Conditions) -> _Drafts:
    upload, upload_lost = sending(terms.upload, 2, now)
    wired, lost = sending(terms.step_upload, 1, now)
    there = upload + upload_lost
    making = terms.length * terms.drafter.token + terms.edge_step
    first = terms.drafter.first + making - np.minimum(terms.length, 1) * terms.drafter.token
    # They go up behind what crosses the cut, on the same wire, once they are drafted.
    come = np.maximum(there, first) + wired + lost + terms.overheads.message / 2
    ready = there + terms.cloud_prepare + now.queue
    return _Drafts(
        late=np.where(terms.drafts, np.maximum(come - ready - terms.cloud_prefill, 0.0), 0.0),
        early=np.where(terms.drafts, np.maximum(ready - come, 0.0), 0.0),
        wired=wired,
        lost=lost,
        making=making,
        verifying=_verifying(terms, now),
    )


def _acceptance(terms: Terms, now: Conditions) -> Floats:
    """The acceptance of each choice: what the gate passes on is harder to foresee than all answers together."""
    rejected = (1 - now.acceptance) * np.where(terms.gated, terms.harder, 1.0)
    return proper(1 - np.minimum(rejected, 1.0))


def _verifying(terms: Terms, now: Conditions) -> Floats:
    """Seconds of passes a token while drafts flow: inside the decoder whole ones, else as many rows as are worth it."""
    more, acceptance = np.maximum(terms.tokens - 1, 1), _acceptance(terms, now)
    seconds = terms.draft_pass / np.minimum(confirmed_tokens(acceptance, terms.length), more)
    for gated, length in itertools.product((False, True), terms.lengths):
        alike = ~terms.deep & (terms.gated == gated) & (terms.length == length)
        if alike.any():
            index = int(np.argmax(alike))
            rate = believed_rate(float(acceptance[index]), more[index] / 2)  # half way through stands for the whole
            rows = worth_verifying(terms.passes, length, rate)
            pace = terms.passes[rows] / np.minimum(confirmed_tokens(acceptance, rows), more)
            seconds = np.where(alike, pace, seconds)
    return seconds


def _race(terms: Terms, now: Conditions, drafts: _Drafts) -> Answering:
    """Up to `decoder.0`, where the worker can decode on alone, and does as far as the effort allows."""
    more, p = terms.tokens - 1, _acceptance(terms, now)
    one = np.maximum(terms.one_pass, 1e-12)
    token, drafting = terms.drafter.token, terms.drafting
    # Seconds a token while drafts flow: the worker's passes or, behind the first message, what drafts and sends more.
    flowing = drafts.verifying + drafts.behind(terms) / np.maximum(more, 1)
    fastest = np.minimum(one, flowing)
    # After a rejection no draft is of use until one that builds on it has come. The worker decodes on meanwhile, and
    # that draft is of use if it foresaw what the worker decoded.
    window = now.rtt + terms.overheads.message + drafts.making + drafts.wired + drafts.lost
    window += CONFIRMED_BYTES / now.downlink
    behind = window / one  # tokens decoded meanwhile
    caught_up = p**behind
    alone = np.minimum(drafts.late / one, more)  # tokens decoded before any draft came
    verified = right_tokens(p, 0, terms.first_verified)  # within the prefill, of an answer that the gate passed on
    first_run = right_tokens(p, alone + terms.first_verified, more)
    rest = more - alone - verified - first_run
    rejected = np.where(more > 0, 1 - p**more, 1.0)  # the chance that any draft is; then so many tokens are left:
    left = rest / np.maximum(rejected, 1e-12)
    flowed = np.maximum(left - behind, 0.0) * caught_up
    raced = terms.extra_pass + alone * one + first_run * fastest
    raced += rejected * ((left - flowed) * one + flowed * fastest)
    # Without decoding alone, each rejection waits, one of the answer's first token too; one of its last does not.
    rejections = more * (1 - p)
    waited = terms.extra_pass + drafts.late + (more - verified) * flowing + rejections * window
    passes = terms.extra_pass + (more - verified) * drafts.verifying
    # Effort is the share of an answer that may be decoded alone; what would be beyond it waits for drafts.
    wants_alone = np.maximum(more * (1 - caught_up), 1e-12)
    waits = np.clip(1 - terms.effort * terms.tokens / wants_alone, 0.0, 1.0)
    # Drafts that come before the prefill are verified in it, which saves a pass, and no more than they are early.
    saved = np.minimum(drafts.early, one) * p * np.minimum(more, 1)
    zero = np.zeros(len(one))
    return Answering(
        drafter=zero,
        edge=zero,
        upload=zero,
        trip=zero,
        queue=zero,
        decode=np.where(drafting, raced + (np.maximum(waited, raced) - raced) * waits - saved, more * one),
        cloud=np.where(drafting, raced + (np.minimum(passes, raced) - raced) * waits, more * one),
        drafted=terms.drafts * (terms.drafter.first + more * token) + drafting * rejections * drafts.making,
        messages=np.where(terms.drafts, np.ceil(more / np.maximum(terms.length, 1)), 0.0) + drafting * rejections,
        trips=np.where(drafting, rejections, 0.0),
    )


def _inside_decoder(terms: Terms, now: Conditions, drafts: _Drafts) -> Answering:
    """Behind `decoder.0` nothing goes on without the row of the last token, which only the device has.

    Without drafts each token is a round trip; with them each rejection is one.
    """
    more, p = terms.tokens - 1, _acceptance(terms, now)
    drafting = terms.drafting
    trips = np.where(drafting, more * (1 - p), more)
    left = more - right_tokens(p, 0, terms.first_verified)
    passes = np.where(drafting, left * drafts.verifying, more * terms.one_pass)
    flow = drafts.behind(terms) * left / np.maximum(more, 1)
    return Answering(
        drafter=drafts.late + drafting * (flow + trips * terms.length * terms.drafter.token),
        edge=trips * terms.edge_step,
        upload=trips * drafts.wired,
        trip=trips * (now.rtt + drafts.lost + terms.overheads.message + CONFIRMED_BYTES / now.downlink),
        queue=trips * now.queue,
        decode=terms.extra_pass + passes,
        cloud=terms.extra_pass + passes,
        drafted=terms.drafts * (terms.drafter.first + more * terms.drafter.token) + trips * drafts.making,
        messages=np.where(terms.drafts, np.ceil(more / np.maximum(terms.length, 1)), 0.0) + trips,
        trips=trips,
    )
