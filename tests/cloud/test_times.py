"""What a worker says of its own time, so that an agent knows the link's."""

from __future__ import annotations

import asyncio
import time

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Open, Opened, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]


def test_times_are_the_workers_and_follow_each_other(bundle: Bundle, cases: list[Case]) -> None:
    opening, image, _ = cases[0]

    async def run() -> None:
        async with (
            serve(bundle, WorkerOptions(slots=2, context=256)) as address,
            WorkerClient(address) as client,
        ):
            before = client.connected
            await client.describe()
            assert (before, client.connected) == (False, True)
            gaps = list[float]()
            for pause in (0.0, 0.0, 1.0):
                began = time.perf_counter()
                async with client.session(opening, (), timeout=30) as session:
                    await asyncio.sleep(pause)
                    for piece in image_chunks(image):
                        await session.upload(piece)
                    events = session.events()
                    opened = await anext(events)
                    waited = time.perf_counter() - began
                    assert [event async for event in events][-1] == session.finished
                assert isinstance(opened, Opened)
                assert pause - 0.1 <= opened.upload_seconds
                assert min(opened.prepare_seconds, opened.queue_seconds) >= 0
                # All of it passed while the agent waited, on a link that takes next to nothing.
                own = opened.upload_seconds + opened.prepare_seconds + opened.queue_seconds
                assert own <= waited + 1e-3
                gaps.append(waited - own)
            assert min(gaps) < 0.8  # other work on the machine holds up one or the other

    asyncio.run(run())
