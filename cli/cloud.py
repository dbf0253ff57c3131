"""`cutline cloud`."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli import options

EPILOG = "Example: cutline cloud --bundle my-target --listen 127.0.0.1:50051 --device cuda"


def cloud(
    bundle: options.Bundle = None,
    listen: options.Listen = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="Where torch runs the target: cpu, cuda, cuda:1.")] = "cpu",
    max_sessions: Annotated[int, typer.Option(help="Sessions served at once; more are refused.")] = 16,
    context: Annotated[int, typer.Option(help="Tokens a session may hold, the model's own limit at most.")] = 2048,
    threads: options.Threads = None,
    insecure: options.Insecure = False,
) -> None:
    """Run a cloud worker: it serves the target of a bundle until it is stopped.

    Prints the address it listens at as its first line. Ctrl-C or SIGTERM stops it in order, with exit code 0.
    """
    import asyncio
    import logging
    import signal

    from cutline.cli.setting import check_listen, open_target, thread_count
    from cutline.errors import InputError

    try:
        import torch

        from cutline.cloud.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"a worker needs {error.name}; install it with `pip install 'cutline[cloud]'`") from None

    check_listen(listen, insecure=insecure)
    cards = torch.cuda.device_count()
    available = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{card}" for card in range(cards))]
    if device not in available:
        raise InputError(f"--device {device} is not here; choose {', '.join(available)}")
    if max_sessions < 1 or context < 2:
        raise InputError("--max-sessions must be 1 or more, --context 2 or more")
    torch.set_num_threads(thread_count(threads))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    opened = open_target(bundle)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        async with serve(opened, listen=listen, slots=max_sessions, context=context, device=device) as address:
            print(f"worker of {opened.manifest.name} listens at {address}", flush=True)
            await stop.wait()

    asyncio.run(run())
