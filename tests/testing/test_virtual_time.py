from __future__ import annotations

import asyncio
import time

from cutline.testing.virtual_time import hold, run_virtually


def test_waits_take_their_virtual_seconds_and_end_in_their_order() -> None:
    ended = list[tuple[str, float]]()

    async def wait(name: str, seconds: float) -> None:
        began = time.monotonic()
        await asyncio.sleep(seconds)
        ended.append((name, round(time.monotonic() - began, 3)))

    async def main() -> None:
        await asyncio.gather(wait("year", 3e7), wait("second", 1.0), wait("hour", 3600.0))

    run_virtually(main())
    assert ended == [("second", 1.0), ("hour", 3600.0), ("year", 3e7)]


def test_a_time_limit_strikes_only_what_lasts_longer_and_a_hold_up_counts() -> None:
    async def main() -> float:
        began = time.monotonic()
        async with asyncio.timeout(10.0):
            await asyncio.sleep(9.0)
        try:
            async with asyncio.timeout(10.0):
                hold(8.0)
                await asyncio.sleep(3.0)
        except TimeoutError:
            return time.monotonic() - began
        raise AssertionError("it was not struck")

    assert round(run_virtually(main()), 3) == 19.0


def test_no_time_passes_while_bytes_are_on_their_way_over_a_socket() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def main() -> float:
        began = time.monotonic()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            async with asyncio.timeout(1.0):  # which would make it pass, were the bytes not waited for
                for _ in range(100):
                    writer.write(b"ping")
                    await reader.readexactly(4)
            writer.close()
            await writer.wait_closed()
            return time.monotonic() - began

    assert run_virtually(main()) < 1.0
