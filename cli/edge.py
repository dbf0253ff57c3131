"""`cutline edge`."""

from __future__ import annotations

from cutline.cli import options

EPILOG = "Example: cutline edge --worker 127.0.0.1:50051 --listen 127.0.0.1:8080"


def edge(
    bundle: options.Bundle = None,
    worker: options.Worker = None,
    target: options.Target = None,
    listen: options.Listen = "127.0.0.1:8080",
    threads: options.Threads = None,
    provider: options.Provider = None,
    edge_profile: options.EdgeProfile = None,
    cloud_profile: options.CloudProfile = None,
    link: options.Link = None,
    insecure: options.Insecure = False,
) -> None:
    """Run an edge agent: it answers `POST /v1/chat/completions` until it is stopped.

    Prints the address it listens at as its first line. `cutline ask --agent URL` asks it. Ctrl-C or SIGTERM stops it
    in order, with exit code 0. With profiles, mode auto plans each request: cut, format and drafting.
    """
    import asyncio

    from cutline.cli.setting import check_listen, open_drafter, open_planner, open_target_for, thread_count
    from cutline.edge.agent import Agent
    from cutline.edge.http import serve
    from cutline.edge.runtime import CPU

    check_listen(listen, insecure=insecure)
    opened, cuttable = open_drafter(bundle), open_target_for(target, bundle)
    planner = open_planner(edge_profile, cloud_profile, link, opened, cuttable)

    async def run() -> None:
        async with Agent(
            opened,
            worker=worker,
            threads=thread_count(threads),
            target=cuttable,
            provider=provider or CPU,
            planner=planner,
        ) as agent:
            await serve(agent, listen=listen, announce=lambda address: print(f"agent listens at {address}", flush=True))

    asyncio.run(run())
