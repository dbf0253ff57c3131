"""The cost of the tokens after the first: verified drafts, decoding on the worker meanwhile, or round trips.

The worker is modelled after `cloud/engine/cost_model.py` and `cloud/engine/sessions/session.py`, the agent after
`edge/offload/backends/worker_session.py`; docs/explanation/planning.md derives the formulas. No cost grows with a
faster link.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

import numpy as np

from cutline.partitioner.acceptance import believed_rate, confirmed_tokens, proper, right_tokens, worth_verifying
from cutline.partitioner.cost import CONFIRMED_BYTES, Terms
from cutline.partitioner.plan import Conditions
from cutline.partitioner.spans import Floats

SEGMENT = 1460  # bytes of a TCP segment, the unit of loss
FRAME_BYTES = 14  # gRPC's and HTTP/2's overhead of a message, which is not counted in a session's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """The cost of the tokens after the first for `n` choices: seconds of each part of the latency, and

    `cloud`, seconds of the worker's passes; `drafted`, seconds of the drafter, on the critical path or not; `messages`,
    the number of drafts after the opening; `trips`, the number of those that are waited for.
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
        """The latency they add."""
        return self.drafter + self.edge + self.upload + self.trip + self.queue + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drafts:
    """The timing of drafts for every choice, in seconds.

    `late` is the wait for the first draft after the prefill, `early` the time that it arrives before the worker is
    ready. `wired` is its transfer, `lost` the delay by losses, `making` the time to draft again after a rejection, and
    `verifying` the passes for each token.
    """

    late: Floats
    early: Floats
    wired: Floats
    lost: Floats
    making: Floats
    verifying: Floats

    def behind(self, terms: Terms) -> Floats:
        """Seconds of waiting for drafts after the first message, if drafting or sending is the bottleneck."""
        length = np.maximum(terms.length, 1)
        slower = np.maximum(np.maximum(self.making, self.wired) / length - self.verifying, 0.0)
        waiting: Floats = slower * np.maximum(terms.tokens - 1 - length, 0)
        return waiting


def answering(terms: Terms, now: Conditions) -> Answering:
    """The cost of the tokens after the first, for every choice."""
    drafts = _drafts(terms, now)
    deep, shallow = _inside_decoder(terms, now, drafts), _race(terms, now, drafts)
    names = [field.name for field in fields(Answering)]
    return Answering(**{name: np.where(terms.deep, getattr(deep, name), getattr(shallow, name)) for name in names})


def sending(size: Floats, messages: int, now: Conditions) -> tuple[Floats, Floats]:
    """Seconds to send `size` bytes in `messages` up, and the expected delay by loss: a round trip if any is lost."""
    size = size + messages * FRAME_BYTES
    lost = 1 - (1 - now.loss) ** np.ceil(size / SEGMENT) if now.loss else np.zeros(len(size))
    return size / now.uplink, now.rtt * lost


def _drafts(terms: Terms, now: Conditions) -> _Drafts:
    upload, upload_lost = sending(terms.upload, 2, now)
    wired, lost = sending(terms.step_upload, 1, now)
    uploaded = upload + upload_lost
    making = terms.length * terms.drafter.token + terms.edge_step
    first = terms.drafter.first + making - np.minimum(terms.length, 1) * terms.drafter.token
    # A draft is sent after the upload, on the same link, once it is made.
    arrival = np.maximum(uploaded, first) + wired + lost + terms.overheads.message / 2
    ready = uploaded + terms.cloud_prepare + now.queue
    return _Drafts(
        late=np.where(terms.drafts, np.maximum(arrival - ready - terms.cloud_prefill, 0.0), 0.0),
        early=np.where(terms.drafts, np.maximum(ready - arrival, 0.0), 0.0),
        wired=wired,
        lost=lost,
        making=making,
        verifying=_verifying(terms, now),
    )


def _acceptance(terms: Terms, now: Conditions) -> Floats:
    """The acceptance rate of each choice. Answers that the gate escalates are harder to draft than the average."""
    rejected = (1 - now.acceptance) * np.where(terms.gated, terms.harder, 1.0)
    return proper(1 - np.minimum(rejected, 1.0))


def _verifying(terms: Terms, now: Conditions) -> Floats:
    """Seconds of passes a token while drafts arrive: of whole drafts inside the decoder, else of as many as pay off."""
    more, acceptance = np.maximum(terms.tokens - 1, 1), _acceptance(terms, now)
    seconds = terms.draft_pass / np.minimum(confirmed_tokens(acceptance, terms.length), more)
    for gated, length in itertools.product((False, True), terms.lengths):
        group = ~terms.deep & (terms.gated == gated) & (terms.length == length)
        if group.any():
            index = int(np.argmax(group))
            rate = believed_rate(float(acceptance[index]), more[index] / 2)  # the middle of the answer stands for all
            rows = worth_verifying(terms.passes, length, rate)
            pace = terms.passes[rows] / np.minimum(confirmed_tokens(acceptance, rows), more)
            seconds = np.where(group, pace, seconds)
    return seconds


def _race(terms: Terms, now: Conditions, drafts: _Drafts) -> Answering:
    """Cuts up to `decoder.0`, where the worker decodes on by itself as far as the effort allows."""
    more, p = terms.tokens - 1, _acceptance(terms, now)
    one = np.maximum(terms.one_pass, 1e-12)
    token, drafting = terms.drafter.token, terms.drafting
    # Seconds a token while drafts arrive: the worker's passes, plus the wait for drafts after the first message.
    flowing = drafts.verifying + drafts.behind(terms) / np.maximum(more, 1)
    fastest = np.minimum(one, flowing)
    # After a rejection drafts are useless until one arrives that builds on it. The worker decodes on meanwhile, and the
    # new draft helps if it predicted what the worker decoded.
    window = now.rtt + terms.overheads.message + drafts.making + drafts.wired + drafts.lost
    window += CONFIRMED_BYTES / now.downlink
    behind = window / one  # tokens decoded meanwhile
    caught_up = p**behind
    alone = np.minimum(drafts.late / one, more)  # tokens decoded before any draft arrives
    verified = right_tokens(p, 0, terms.first_verified)  # of an escalated answer, within the prefill
    first_run = right_tokens(p, alone + terms.first_verified, more)
    rest = more - alone - verified - first_run
    rejected = np.where(more > 0, 1 - p**more, 1.0)  # the probability of any rejection
    left = rest / np.maximum(rejected, 1e-12)  # the tokens that are left after one
    flowed = np.maximum(left - behind, 0.0) * caught_up
    raced = terms.extra_pass + alone * one + first_run * fastest
    raced += rejected * ((left - flowed) * one + flowed * fastest)
    # If the worker does not decode on, each rejection waits, also that of the first token, but not of the last.
    rejections = more * (1 - p)
    waited = terms.extra_pass + drafts.late + (more - verified) * flowing + rejections * window
    passes = terms.extra_pass + (more - verified) * drafts.verifying
    # Effort is the share of an answer that the worker may decode by itself; beyond it the worker waits for drafts.
    wants_alone = np.maximum(more * (1 - caught_up), 1e-12)
    waits = np.clip(1 - terms.effort * terms.tokens / wants_alone, 0.0, 1.0)
    # Drafts that arrive before the prefill are verified in it. That saves a pass, but no more time than they are early.
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
    """Cuts after `decoder.0`, where the worker needs the row of the last token from the device.

    Without drafts each token is a round trip, with them each rejection is one.
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
