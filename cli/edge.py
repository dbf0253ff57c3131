"""`cutline edge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutline.cli import options
from cutline.cli.config import Config

EPILOG = "Example: cutline edge --worker 127.0.0.1:50051 --listen 127.0.0.1:8080 --insecure"


def edge(
    config: Config = None,
    bundle: options.Bundle = None,
    worker: options.Workers = None,
    directory: options.Directory = None,
    target: options.Target = None,
    listen: options.Listen = "127.0.0.1:8080",
    threads: options.Threads = None,
    provider: options.Provider = None,
    edge_profile: options.EdgeProfile = None,
    cloud_profile: options.CloudProfile = None,
    link: options.Link = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    api_tokens: Annotated[
        Path | None, typer.Option(help="TOML file of who may ask with which token, over HTTP.", show_default=False)
    ] = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    token_file: options.TokenFile = None,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST (or HOST:PORT) that http(s) URLs of images may name; may be given again.", show_default=False
        ),
    ] = None,
    requests: Annotated[
        int,
        typer.Option(
            help="Questions in work at once that need a worker, and as many that the device may answer; one more is "
            "told to come later."
        ),
    ] = 8,
    notice: options.Notice = 2.0,
    upstream: options.Upstream = None,
    upstream_model: options.UpstreamModel = "default",
    upstream_key_file: options.UpstreamKeyFile = None,
    memory: options.Memory = 0.0,
    fresh: options.Fresh = False,
    offline: options.Offline = False,
    log: options.Log = "text",
    insecure: options.Insecure = False,
) -> None:
    """Run an edge agent: it answers `POST /v1/chat/completions` until it is stopped.

    Prints the address it listens at as its first line. `cutline ask --agent URL` asks it. Ctrl-C or SIGTERM stops it
    in order, with exit code 0, a second one at once. With profiles, mode auto plans each request: cut, format and
    drafting. It is asked over HTTPS by who has a token of --api-tokens; where others can reach it, its second line is a
    link that lets one browser in. --ca, --cert, --key and --token-file are for its worker.
    """
    import asyncio
    import logging

    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import AgentOptions, agent_opener, check_listen, open_keys, open_server_keys
    from cutline.cli.terminal.logs import write_logs
    from cutline.edge.api.access.login import LINK_SECONDS, LoginCode
    from cutline.edge.api.server import serve
    from cutline.protos.channel.address import is_loopback, parse_address, reached_at
    from cutline.protos.channel.token_file import Tokens

    write_logs(log)
    server_keys, keys = open_server_keys(tls_cert, tls_key), open_keys(ca, cert, key, token_file)
    secured = server_keys is not None and api_tokens is not None
    check_listen(listen, secured=secured, insecure=insecure, needs="--tls-cert, --tls-key and --api-tokens")
    tokens = None if api_tokens is None else Tokens(api_tokens, agent=True)
    given = AgentOptions(
        bundle=bundle,
        target=target,
        workers=worker or (),
        directory=directory,
        profiles=(edge_profile, cloud_profile, link),
        threads=threads,
        provider=provider,
        keys=keys,
        notice=notice,
        offline=offline,
        upstream=upstream,
        upstream_model=upstream_model,
        upstream_key_file=upstream_key_file,
        memory=memory,
        fresh=fresh,
    )
    open_agent = agent_opener(given, cuts=True)

    invitation = None if tokens is None or is_loopback(parse_address(listen)[0]) else LoginCode()

    def announce(address: str) -> None:
        print(f"agent listens at {address}", flush=True)
        if invitation is not None:
            url = f"https://{reached_at(address)}/?code={invitation.code}"
            print(f"for one browser, within {LINK_SECONDS / 60:.0f} minutes: {url}", flush=True)

    async def run(signals: Signals) -> None:
        stop = asyncio.Event()
        async with open_agent() as agent:
            if (why := agent.state().why) is not None:
                logging.getLogger(__name__).warning("not ready: %s", why)
            signals.end_by_setting(stop)
            await serve(
                agent,
                listen=listen,
                announce=announce,
                stop=stop,
                allow_urls=allow_url or (),
                most=requests,
                keys=server_keys,
                tokens=tokens,
                link=invitation,
            )
        leave(0)

    with Signals() as signals:
        asyncio.run(run(signals))
