"""The terms of each choice's cost that do not depend on the link; `predict` combines them with the link's conditions.

They depend on models, machines and question only, are computed once, and are arrays with one entry for each choice.
docs/explanation/planning.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cutline.core.request import Mode
from cutline.core.wire import Wire, bytes_per_row, data_bytes
from cutline.devices.profile import DeviceProfile
from cutline.models.bundle import Manifest
from cutline.models.costs import LayerCost, Sizes, layer_costs, request_sizes
from cutline.partitioner.acceptance import FIRST_RATE, worth_verifying
from cutline.partitioner.plan import Choice, Space
from cutline.partitioner.roofline import Machine, Speed, drafter_speed, memory_of
from cutline.partitioner.setting import Asked, Overheads, Setting, drafter_sizes
from cutline.partitioner.spans import Floats, Spans, spans_of

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

# Bytes of the session protocol's messages without tokens and rows; a test compares them with real messages.
OPEN_BYTES = 110
DIGEST_BYTES = 34  # of an image, in the opening
FILE_BYTES = 8  # of a piece of a file
ROWS_BYTES = 20  # of a piece of a boundary, or of a draft's rows
DRAFT_BYTES = 6
CONFIRMED_BYTES = 9
CLOSING_BYTES = 52  # of the worker's first and last message
MESSAGE_BYTES = 1 << 20  # the most bytes of rows or of a file in one message

# Bytes of an upstream's requests and responses, in JSON.
REQUEST_BYTES = 150
PICTURE_BYTES = 75  # of an image, without its base64
WORD_BYTES = 4  # of the prompt's text, for each token
EVENT_BYTES = 200  # for each token of the answer

AGENT_BYTES = 110e6  # memory of an agent without models: Python and its libraries
PREPROCESS_SECONDS = 5e-6  # a patch, to decode and resize an image, if the profile has no measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of `n` choices. Arrays are (n,), in seconds and bytes, and 0 if a term does not apply to a choice.

    `passes[i]` is a worker's pass of i + 1 rows through the whole decoder. `one_pass` is one row from the choice's cut
    on, `draft_pass` a draft and the token before it; `edge_step` and `step_upload` are for as many rows.
    `answer_tokens` is the mean length of an answer, `passed_tokens` that of one that the gate escalates, and `harder`
    is `GateRates.harder`. `extra_pass` is what verifying an escalated answer's `first_verified` tokens adds to the
    prefill. `place` is the index of the cut on the layer line, or the number of layers without a worker. `agreement`
    and `leak` are NaN if they were not measured. An `upstream` in place of a worker verifies no drafts.
    """

    upstream: bool
    choices: tuple[Choice, ...]
    answer_tokens: int
    passed_tokens: int
    harder: float
    drafter: Speed
    kept: float
    prepare: float
    overheads: Overheads
    idle_watts: float
    loaded_watts: float | None
    passes: Floats
    lengths: tuple[int, ...]
    place: Integers
    asks: Bools
    drafts: Bools
    gated: Bools
    deep: Bools
    length: Integers
    effort: Floats
    packing: Floats
    edge_prefill: Floats
    edge_step: Floats
    upload: Floats
    step_upload: Floats
    cloud_prepare: Floats
    cloud_prefill: Floats
    one_pass: Floats
    draft_pass: Floats
    first_verified: Integers
    extra_pass: Floats
    memory: Floats
    agreement: Floats
    exact: Bools
    leak: Floats

    @property
    def tokens(self) -> Integers:
        """Tokens (n,) of an answer that the worker gives."""
        return np.where(self.gated, self.passed_tokens, self.answer_tokens)

    @property
    def drafting(self) -> Bools:
        """Which choices (n,) have drafted tokens verified."""
        return np.zeros(len(self.choices), bool) if self.upstream else self.drafts | self.gated

    @property
    def token_down(self) -> float:
        """Bytes received with each token."""
        return EVENT_BYTES if self.upstream else CONFIRMED_BYTES + 1.0

    @property
    def feared(self) -> Floats:
        """The leak (n,) for a limit; 1 if it was not measured."""
        return np.where(np.isnan(self.leak), 1.0, self.leak)


def terms_of(setting: Setting, asked: Asked, space: Space) -> Terms:
    """The terms of every choice in `space`; choices of mode `auto` only if `setting` has a gate."""
    known, upstream = _known(setting, asked, space), isinstance(setting.cloud, Speed)
    every = space.choices(setting.target.line, upstream=upstream)
    choices = [choice for choice in every if choice.mode != "auto" or setting.gate is not None]
    rows = [_row(known, setting, asked, choice) for choice in choices]
    columns = {
        name: np.array([row[name] for row in rows]) for name in _row(known, setting, asked, Choice(mode=Mode.EDGE))
    }
    own = drafter_sizes(setting, asked)
    return Terms(
        upstream=upstream,
        choices=tuple(choices),
        answer_tokens=asked.answer_tokens,
        passed_tokens=known.passed_tokens,
        harder=1.0 if setting.gate is None else setting.gate.harder,
        drafter=drafter_speed(setting.edge, setting.drafter, own, context=own.tokens + asked.answer_tokens / 2),
        kept=0.0 if setting.gate is None else setting.gate.kept,
        prepare=setting.overheads.request + preprocess_seconds(setting.edge, known.sizes),
        overheads=setting.overheads,
        idle_watts=setting.edge.idle_watts or 0.0,
        loaded_watts=setting.edge.loaded_watts,
        passes=known.passes,
        lengths=tuple({int(length): None for length in columns["length"]}),
        memory=memory_bytes(setting, asked, choices),
        **columns,
    )


def served(terms: Terms, speed: Speed) -> Terms:
    """The terms with another `speed` of the upstream."""
    asked = terms.asks.astype(float)
    return replace(terms, cloud_prefill=speed.first * asked, one_pass=speed.token * asked)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the terms of all choices share."""

    sizes: Sizes
    context: float
    layers: dict[str, LayerCost]
    places: dict[str, int]
    spans: Spans
    scheduling: float
    passes: Floats
    passed_tokens: int
    first_verified: int


def _known(setting: Setting, asked: Asked, space: Space) -> _Known:
    target, names = setting.target, setting.target.line.layers
    passed = _passed_tokens(setting, asked)
    longest = max(asked.answer_tokens, passed) - 1
    sizes = request_sizes(target, asked.grids, asked.prompt_tokens)
    context = asked.prompt_tokens + asked.answer_tokens / 2
    edge = Machine.of(setting.edge, target, "edge")
    remote = setting.cloud
    cloud = remote if isinstance(remote, Speed) else Machine.of(remote, target, "cloud", dtype=setting.cloud_dtype)
    spans = spans_of(edge, cloud, sizes, context=context, longest=max(*space.lengths, longest) + 1)
    scheduling = 0.0 if isinstance(remote, Speed) else setting.overheads.scheduling
    passes = spans.cloud_passes[:, names.index("decoder.0")] + scheduling
    return _Known(
        sizes,
        context,
        {layer.name: layer for layer in edge.layers},
        {name: place for place, name in enumerate(names)},
        spans,
        scheduling,
        passes,
        passed,
        worth_verifying(passes, passed - 1, FIRST_RATE),
    )


def _passed_tokens(setting: Setting, asked: Asked) -> int:
    """The mean tokens of an answer that the gate escalates, within the model's context."""
    if setting.gate is None:
        return asked.answer_tokens
    room = setting.target.decoder.context - asked.prompt_tokens
    return max(1, min(round(asked.answer_tokens * setting.gate.longer), max(room, asked.answer_tokens)))


def _row(known: _Known, setting: Setting, asked: Asked, choice: Choice) -> dict[str, float]:
    """The terms of one choice."""
    asks, gated, spans = choice.cut is not None, choice.mode == Mode.AUTO, known.spans
    more = (known.passed_tokens if gated else asked.answer_tokens) - 1
    cut = known.places["image"] if choice.cut is None else known.places[choice.cut]
    deep, uploads = choice.cut in setting.target.line.deep_cuts, choice.cut == "image"
    length = 0 if choice.drafting is None else min(choice.drafting.length, more)
    first = 0 if not gated else more if deep else known.first_verified
    whole = more + 1 if gated else 0  # tokens drafted before the session is opened
    ids = _token_bytes(setting.target)
    a_row = 0 if choice.wire is None else bytes_per_row(choice.wire, known.layers[choice.cut or "image"].width)
    boundary = known.layers[choice.cut or "image"].boundary(known.sizes)
    crossing = a_row * ((boundary[0] if boundary else 0) + (whole if deep else 0)) if asks else 0
    file = asked.image_bytes if uploads else 0
    opening = OPEN_BYTES + ids * (asked.prompt_tokens + whole)
    opening += 0 if deep else DIGEST_BYTES * len(asked.grids)
    opening += file + FILE_BYTES * math.ceil(file / MESSAGE_BYTES)
    opening += crossing + ROWS_BYTES * math.ceil(crossing / MESSAGE_BYTES)
    prepares = packing = 0.0
    if isinstance(setting.cloud, Speed):  # it gets the image file in base64, and its speed includes all its work
        opening = upstream_bytes(asked, known.sizes)
    elif uploads:
        prepares, packing = preprocess_seconds(setting.cloud, known.sizes), pack_seconds(setting, known.sizes)
    passes = (spans.cloud_passes[:, cut] + known.scheduling) * asks
    return {
        "place": len(known.places) if choice.cut is None else cut,
        "asks": asks,
        "drafts": choice.mode == Mode.DRAFT,
        "gated": gated,
        "deep": deep,
        "length": length,
        "effort": 1.0 if choice.drafting is None else choice.drafting.effort,
        "packing": packing,
        "edge_prefill": spans.edge_prefill[cut] + (spans.edge_steps[more, cut] if deep and gated else 0.0),
        "edge_step": spans.edge_steps[length, cut] if deep else 0.0,
        "upload": opening if asks else 0.0,
        "step_upload": DRAFT_BYTES + (length + 1) * ids + deep * (ROWS_BYTES + (length + 1) * a_row),
        "cloud_prepare": prepares,
        "cloud_prefill": spans.cloud_prefill[cut] * asks,
        "one_pass": passes[0],
        "draft_pass": passes[length],
        "first_verified": first,
        "extra_pass": passes[first] - passes[0],
        "agreement": _agreement(setting, choice),
        "exact": _is_exact(setting, choice),
        "leak": _leak(setting, choice),
    }


def upstream_bytes(asked: Asked, sizes: Sizes) -> int:
    """The bytes of a request to an upstream."""
    pictures = math.ceil(asked.image_bytes / 3) * 4 + PICTURE_BYTES * len(asked.grids)
    return REQUEST_BYTES + pictures + WORD_BYTES * max(0, asked.prompt_tokens - sizes.image_tokens)


def preprocess_seconds(profile: DeviceProfile, sizes: Sizes) -> float:
    """Seconds from image files to the tower's pixels."""
    known = profile.preprocess_seconds
    return PREPROCESS_SECONDS * sizes.patches if known is None else known * sizes.images


def pack_seconds(setting: Setting, sizes: Sizes) -> float:
    """Seconds to shrink the images before the upload."""
    if setting.edge.shrink_seconds is not None:
        return setting.edge.shrink_seconds * sizes.images
    return preprocess_seconds(setting.edge, sizes) * setting.overheads.packing


def memory_bytes(setting: Setting, asked: Asked, choices: Sequence[Choice]) -> Floats:
    """The agent's memory in bytes for each choice: itself, its span of the target, the drafter, and their caches.

    An agent loads its drafter for every mode, also for modes without drafts.
    """
    tokens, names = asked.prompt_tokens + asked.answer_tokens, setting.target.line.layers
    layers = memory_of(layer_costs(setting.target), setting.target.precision, tokens)
    held = np.concatenate([[0.0], np.cumsum(layers)])
    drafter = sum(memory_of(layer_costs(setting.drafter), setting.drafter.precision, tokens))
    span = [0.0 if choice.cut is None else held[names.index(choice.cut)] for choice in choices]
    return np.array(span) + drafter + AGENT_BYTES


def _agreement(setting: Setting, choice: Choice) -> float:
    """The share of answers with exactly the target's tokens, or an upstream's; NaN if it was not measured.

    For mode `edge` it is a lower bound.
    """
    gate = setting.gate
    if choice.cut is None:
        return 0.0 if gate is None else gate.kept * gate.agreed
    if setting.target.is_exact_at(choice.cut, choice.wire):
        of_target = 1.0
    else:
        of_target = (setting.prices or {}).get((choice.cut, choice.wire or Wire.FLOAT32), math.nan)
    return gate.kept * gate.agreed + (1 - gate.kept) * of_target if gate and choice.mode == Mode.AUTO else of_target


def _is_exact(setting: Setting, choice: Choice) -> bool:
    asks_target = choice.mode in (Mode.CLOUD, Mode.SPLIT, Mode.DRAFT) and not isinstance(setting.cloud, Speed)
    return asks_target and setting.target.is_exact_at(choice.cut, choice.wire)


def _leak(setting: Setting, choice: Choice) -> float:
    """The share of an image's variance that is recovered from what the worker gets; NaN if it was not measured.

    A format that was not measured counts as the next wider one that was, as it contains no more.
    """
    if choice.cut is None:
        return 0.0
    if choice.wire is None:
        return 1.0
    measured = {wire: leak for (cut, wire), leak in (setting.leaks or {}).items() if cut == choice.cut}
    if choice.wire in measured:
        return measured[choice.wire]
    sizes = {wire: data_bytes(wire, 8) for wire in measured}
    nearest = min((size for size in sizes.values() if size > data_bytes(choice.wire, 8)), default=None)
    return max((measured[wire] for wire, size in sizes.items() if size == nearest), default=math.nan)


def _token_bytes(manifest: Manifest) -> int:
    """Bytes of the largest token id as a varint, with seven bits a byte."""
    return max(1, math.ceil((manifest.decoder.vocabulary - 1).bit_length() / 7))
