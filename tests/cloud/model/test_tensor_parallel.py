"""A target on two devices, here processes on the processor, against the same one in one process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image

from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.device_names import device_of
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.model.tensor_parallel import PATIENCE, RankLost
from cutline.cloud.serving.ranks import Ranks
from cutline.core.sampling import Sampling
from cutline.errors import InputError, WorkerFailed
from cutline.models.bundle import Bundle, Manifest
from cutline.models.sight import piece_end
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Open
from cutline.testing.models.comparison import small_target

Case = tuple[Open, bytes, tuple[int, ...]]

pytestmark = pytest.mark.timeout(600)  # every rank imports torch, which takes a busy machine a minute or two

SLOTS, CONTEXT = 4, 256
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Ranks that do not part in order leave this process's part of the group, and a process has one."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def conversation(manifest: Manifest, dice: np.random.Generator, slot: int, cut: str) -> Session:
    """Random words around one image of noise; at a deep cut without any, with random rows."""
    words = [token for token in range(manifest.decoder.vocabulary) if token != manifest.image_token]
    image = manifest.family.preprocess(Image.fromarray(dice.integers(0, 256, (90, 120, 3), np.uint8)))
    marks = [manifest.image_token] * manifest.family.tokens(image.grid) if cut == "image" else []
    tokens = (*dice.choice(words, 5).tolist(), *marks, *dice.choice(words, 30).tolist())
    grids = (image.grid,) if marks else ()
    request = SessionRequest(
        tokens=tokens,
        prompt_length=len(tokens),
        max_tokens=1,
        sampling=Sampling(),
        effort=1.0,
        cut=cut,
        deep=cut != "image",
        boundary=image.values if marks else dice.normal(size=(len(tokens), manifest.decoder.width)).astype(np.float32),
        grids=grids,
        positions=manifest.family.positions(np.array(tokens) == manifest.image_token, grids),
    )
    return Session("s", request, slot, CONTEXT)


def pictured(target: Target, session: Session) -> torch.Tensor | None:
    asked = session.request
    return None if asked.deep or asked.boundary is None else target.encode(asked.boundary, asked.cut, asked.grids)


def deep_rows(session: Session, start: int, end: int) -> NDArray[np.float32] | None:
    asked = session.request
    return asked.boundary[start:end] if asked.deep and asked.boundary is not None else None


def same(found: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
        assert torch.equal(one.argmax(-1), other.argmax(-1))


def ranks(
    bundle: Bundle,
    count: int = 2,
    *,
    layers: tuple[str, str] = ("image", "end"),
    slots: int = SLOTS,
    device: str = "cpu",
) -> Ranks:
    return Ranks(
        bundle, count, layers=layers, capacity=Capacity(slots=slots, context=CONTEXT), device=device, dtype=None
    )


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_target("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize(
    "model", ["bundle", *(pytest.param(one, marks=pytest.mark.proof) for one in ("qwen", "gemma3"))]
)
def test_two_ranks_make_the_logits_of_one(model: str, request: pytest.FixtureRequest) -> None:
    """Prompts in pieces, answers, drafts that are rejected, a slot that begins with another's rows, entries anywhere.

    The demo's target is SmolVLM's shape; Qwen has biases, shared keys, and positions on three axes; Gemma has windows,
    norms of queries and keys, and images whose tokens see each other both ways, where pieces end at seams.
    """
    bundle: Bundle = request.getfixturevalue(model)
    manifest, dice = bundle.manifest, np.random.default_rng(0)
    one = Target(bundle, Capacity(slots=SLOTS, context=CONTEXT))
    both = ranks(bundle)
    with both:
        two = Target(bundle, Capacity(slots=SLOTS, context=CONTEXT), group=both.group)
        whole, part = (sum(part.nbytes for part in target._cache.keys) for target in (one, two))
        assert whole == 2 * part
        cuts = ("image", "image", manifest.line.deep_cuts[0], manifest.line.deep_cuts[-2])
        sessions = [conversation(manifest, dice, slot, cut) for slot, cut in enumerate(cuts)]
        pictures = [pictured(one, session) for session in sessions]
        places, passes = [0] * len(sessions), 0
        while any(place < len(session.tokens) for place, session in zip(places, sessions, strict=True)):
            batch, images = [], []
            for number, session in enumerate(sessions):
                start, tokens = places[number], session.request.tokens
                if start == len(tokens) or dice.random() < 0.2:
                    continue
                most = int(dice.integers(1, 50))
                end = min(len(tokens), piece_end(session.request.positions.blocks, start, most))
                drafted = int(dice.integers(0, end - start))
                batch.append(SessionRows(session, start, tokens[start:end], drafted, deep_rows(session, start, end)))
                images.append(pictures[number])
                places[number] = end - int(dice.integers(0, drafted + 1))  # the rest was rejected: others come there
            if batch:
                same(two.run(batch, images), one.run(batch, images))
                passes += 1
        assert passes > 3
        # Another conversation begins as the first one did.
        kept = len(sessions[0].tokens) - 6
        heir = replace(sessions[0], slot=3)
        for target in (one, two):
            target.resume(3, 0, kept)
        batch = [SessionRows(heir, kept, heir.request.tokens[kept:], 2)]
        same(two.run(batch, [None]), one.run(batch, [None]))
    assert [process.returncode for process in both._processes] == [0]


@pytest.mark.proof
def test_a_span_inside_the_decoder_is_divided_likewise(bundle: Bundle) -> None:
    dice, layers = np.random.default_rng(1), ("decoder.1", "decoder.3")
    one = Target(bundle, Capacity(slots=1, context=CONTEXT), layers=(layers[0], layers[1]))
    with ranks(bundle, layers=layers, slots=1) as both:
        two = Target(bundle, Capacity(slots=1, context=CONTEXT), layers=(layers[0], layers[1]), group=both.group)
        session = conversation(bundle.manifest, dice, 0, "decoder.1")
        for start, end in ((0, 20), (20, 21), (21, 30)):
            batch = [SessionRows(session, start, session.request.tokens[start:end], 0, deep_rows(session, start, end))]
            same(two.run(batch, [None]), one.run(batch, [None]))


@pytest.mark.parametrize(
    ("heads", "shared", "count", "fitting"),
    [(9, 3, 2, "3 can"), (16, 8, 3, "2, 4, 8 can"), (4, 2, 4, "2 can"), (12, 1, 2, "no number of them can")],
)
def test_heads_that_do_not_divide_are_refused(
    bundle: Bundle, heads: int, shared: int, count: int, fitting: str
) -> None:
    """The MLP of the demo's target is 384 wide, which all of these but its heads divide."""
    spec = msgspec.structs.replace(bundle.manifest.decoder, heads=heads, kv_heads=shared)
    other = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, decoder=spec))
    with pytest.raises(InputError, match=rf"^{count} devices cannot divide {heads} heads, {shared} .* {fitting}$"):
        ranks(other, count)


def test_layers_and_devices_that_cannot_be_shared_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"no layer of the decoder in image:decoder\.0"):
        ranks(bundle, layers=("image", "decoder.0"))
    with pytest.raises(InputError, match="--device cuda:1 is one device"):
        ranks(bundle, device="cuda:1")
    assert device_of("cuda", 1) == "cuda:1"


def test_all_ranks_refuse_what_one_has_no_room_for(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="sessions need"), ranks(bundle, slots=10**9) as both:
        Target(bundle, Capacity(slots=10**9, context=CONTEXT), group=both.group)
    assert "sessions need" in capfd.readouterr().err


@dataclass(frozen=True, slots=True)
class Worker:
    """The command on two ranks, and the process of the second."""

    process: subprocess.Popen[str]
    address: str
    other: psutil.Process


@pytest.fixture
def worker() -> Iterator[Worker]:
    options = ["--listen", "127.0.0.1:0", "--tensor-parallel", "2", "--insecure"]
    command = [sys.executable, "-m", "cutline.cli", "cloud", *options]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            [other] = psutil.Process(process.pid).children()
            yield Worker(process, address, other)
        finally:
            process.kill()


def test_a_worker_answers_and_its_ranks_end_with_it_also_one_that_hangs(
    asking: Any, cases: list[Case], worker: Worker
) -> None:
    async def answers() -> None:
        async with WorkerClient(worker.address) as client:
            for case in cases[:4]:
                asked = asking(case, "image")
                await asked.ask(client)
                assert tuple(asked.tokens) == case[2]

    asyncio.run(answers())
    worker.other.send_signal(signal.SIGSTOP)
    worker.process.kill()
    _, alive = psutil.wait_procs([worker.other], timeout=30)
    assert alive == []


def test_a_worker_ends_with_a_rank_of_its_own(asking: Any, cases: list[Case], worker: Worker) -> None:
    """While a session waits for a draft, and no pass is run that would fail."""

    async def breaks() -> None:
        async with WorkerClient(worker.address) as client:
            waiting = asking(cases[0], "image", effort=0.0)
            async with client.session(waiting.opening, waiting.upload(), timeout=60) as session:
                events = session.events()
                while not isinstance(await anext(events), Confirmed):
                    pass
                worker.other.kill()
                with pytest.raises(WorkerFailed):
                    await anext(events)

    asyncio.run(breaks())
    _, said = worker.process.communicate(timeout=30)
    assert worker.process.returncode == WorkerFailed.exit_code, "for its supervisor to start it again"
    assert said.endswith("cutline: the worker broke; its log says more\n")


@pytest.mark.proof
def test_a_worker_ends_where_a_rank_hangs(asking: Any, cases: list[Case], worker: Worker) -> None:
    """By what a pass usually takes, which is long before gloo's own minute; heartbeats go on meanwhile."""

    async def hangs() -> None:
        async with WorkerClient(worker.address) as client:
            await asking(cases[0], "image").ask(client)
            worker.other.send_signal(signal.SIGSTOP)
            with pytest.raises(WorkerFailed, match="no longer answers"):
                await asking(cases[1], "image").ask(client)

    asyncio.run(hangs())
    assert worker.process.wait(30) == WorkerFailed.exit_code
    _, alive = psutil.wait_procs([worker.other], timeout=30)
    assert alive == []


def test_a_rank_that_hangs_is_noticed_where_a_pass_is_told(bundle: Bundle) -> None:
    """Whether it waited for that, so that the first word of it still goes out, or not yet."""
    with ranks(bundle) as both, ThreadPoolExecutor(1) as other:
        target = Target(bundle, Capacity(slots=SLOTS, context=CONTEXT), group=both.group)
        session = conversation(bundle.manifest, np.random.default_rng(0), 0, "decoder.1")
        rows = [SessionRows(session, 0, session.request.tokens, 0, deep_rows(session, 0, len(session.request.tokens)))]
        target.run(rows, [None])
        [process] = both._processes
        process.send_signal(signal.SIGSTOP)
        for group in (dist.distributed_c10d._get_default_group(), both.group._control):
            if group._get_backend(torch.device("cpu")).options._timeout == PATIENCE:
                group.set_timeout(timedelta(seconds=1))
        running = other.submit(target.run, rows, [None])
        try:
            with pytest.raises(RankLost, match="no longer answers"):
                running.result(20)
        finally:
            process.kill()
