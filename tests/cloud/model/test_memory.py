"""How many sessions fit: held against what a target's cache really takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.model import model_runner as target_module
from cutline.cloud.model.batch import NobodysRows
from cutline.cloud.model.memory import (
    LEAST_CONTEXT,
    LEAST_SLOTS,
    MOST_SLOTS,
    SHARE,
    SlotSize,
    context_that_fits,
    image_room,
    slot_size,
    slots_that_fit,
)
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.families.layer_state import KEYS_VALUES
from cutline.protos.client import WorkerClient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_is_counted_as_large_as_it_is(bundle: Bundle, dtype: torch.dtype) -> None:
    target = Target(bundle, Capacity(slots=3, context=48), dtype=dtype)
    cache, spec = target._cache, bundle.manifest.decoder
    held = sum(part.untyped_storage().nbytes() for part in (*cache.keys, *cache.values))
    counted = slot_size(
        [KEYS_VALUES] * spec.layers, kv_heads=spec.kv_heads, head_dim=spec.head_dim, itemsize=dtype.itemsize
    )
    assert (held, 0) == (3 * 48 * counted.token, counted.fixed)


def test_states_take_no_more_than_is_counted(targets: Callable[[str], Bundle]) -> None:
    target = Target(targets("qwen3.5"), Capacity(slots=2, context=64))
    cache, family, spec = target._cache, target._family, targets("qwen3.5").manifest.decoder
    keeps = [family.keeps(layer) for layer in range(spec.layers)]
    counted = slot_size(keeps, kv_heads=spec.kv_heads, head_dim=spec.head_dim, itemsize=4)
    assert sum(part.untyped_storage().nbytes() for part in (*cache.keys, *cache.values)) == 2 * 64 * counted.token
    drafted = target.most_drafted
    assert drafted is not None
    for start in (0, 9):  # twice as many as it may be, and half of it
        rows = NobodysRows(0, start, (0,) * (9 + drafted), wanted=0, axes=3, drafted=drafted)
        target.run([rows], [None])
    assert cache.recurrences is not None
    held = [
        part for one in cache.recurrences._held[0] for states, since in one.layers.values() for part in (*states, since)
    ]
    assert sum(part.untyped_storage().nbytes() for part in held) == counted.fixed
    assert target.kept(0, 18) == 18


@given(st.integers(1, 10**9), st.integers(0, 10**12), st.none() | st.integers(1, 300))
def test_slots_stay_within_what_is_free(slot: int, free: int, asked: int | None) -> None:
    try:
        given = slots_that_fit(asked, slot=slot, free=free)
    except InputError:
        assert (asked or 1) * slot > free * SHARE - 1
    else:
        assert given * slot <= free * SHARE
        assert given == asked if asked else given == MOST_SLOTS or (given + 1) * slot > free * SHARE - 1


@given(
    st.integers(2, 10**6),
    st.integers(1, 10**7),
    st.just(0) | st.integers(0, 10**9),
    st.integers(0, 10**12),
    st.none() | st.integers(1, 300),
)
def test_a_context_is_the_models_own_or_what_leaves_room_for_sessions(
    most: int, token: int, fixed: int, free: int, asked: int | None
) -> None:
    sessions = asked or LEAST_SLOTS
    given = context_that_fits(most, asked=asked, size=SlotSize(token, fixed), free=free)
    assert min(most, LEAST_CONTEXT) <= given <= most
    if given < most:
        assert ((given + 256) * token + fixed) * sessions > free * SHARE - sessions, "more would have fitted"
    if given > LEAST_CONTEXT:
        assert (given * token + fixed) * sessions <= free * SHARE


def of_context(bundle: Bundle, context: int) -> Bundle:
    """The bundle, with a manifest that tells of a longer context."""
    spec = msgspec.structs.replace(bundle.manifest.decoder, context=context)
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, decoder=spec))


@pytest.mark.parametrize(("free", "context"), [(1 << 33, 5000), (160 << 20, 3840), (64 << 20, 2048)])
def test_a_worker_that_is_told_no_context_has_the_models_own_as_memory_permits(
    bundle: Bundle, free: int, context: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(target_module, "free_memory", lambda device: free)

    async def described() -> int:
        async with (
            serve(of_context(bundle, 5000), WorkerOptions()) as address,
            WorkerClient(address) as client,
        ):
            return (await client.describe()).context

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(described()) == context
    assert (f"sessions hold {context} tokens and not 5000" in caplog.text) == (context < 5000)


def test_too_little_memory_is_one_clear_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"1 session needs .* MiB of keys and values, .* give a smaller --context$"):
        Target(bundle, Capacity(context=256))
    monkeypatch.setattr(target_module, "free_memory", lambda device: 50 << 20)
    assert 1 < Target(bundle, Capacity(context=256)).slots <= MOST_SLOTS
    with pytest.raises(InputError, match=r"give --max-sessions [0-9]+ or a smaller --context"):
        Target(bundle, Capacity(slots=10_000, context=256))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how much memory a process has")
def test_slots_take_memory_once_they_are_used(bundle: Bundle) -> None:
    """On a processor: a thousand sessions that are allowed cost nothing, those that come cost their own."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

    Target(bundle, Capacity(slots=1, context=256))  # whatever the first one needs
    before = resident()
    target = Target(bundle, Capacity(slots=400, context=256), dtype=torch.float32)
    kept = (*target._cache.keys, *target._cache.values)
    held = sum(part.nbytes for part in kept)
    assert held > 300 << 20
    assert resident() - before < held / 4
    for part in kept:
        part[7] = 1.0
    assert resident() - before < held / 4
    assert not any(part[[0, 6, 8]].any() for part in kept)


def test_room_for_images_is_a_share_or_what_was_asked_for() -> None:
    assert image_room(None, free=1000) == 50
    assert image_room(0, free=1000) == 0
    assert image_room(200, free=1000) == 200
    with pytest.raises(InputError, match="--image-cache 300 is over the 250 bytes"):
        image_room(300, free=1000)


def test_a_target_computes_in_the_type_it_was_told(bundle: Bundle) -> None:
    target = Target(bundle, Capacity(slots=1, context=64), dtype=torch.bfloat16)
    assert target.model.dtype == target._cache.keys[0].dtype == torch.bfloat16
