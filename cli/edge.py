"""`cutline edge`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cutline.cli import options
from cutline.cli.config import Config
from cutline.cli.fields import with_options
from cutline.errors import InputError

if TYPE_CHECKING:
    import asyncio

    from cutline.edge.agent import Agent
    from cutline.models.bundle import Manifest

EPILOG = "Example: cutline edge --worker 127.0.0.1:50051 --listen 127.0.0.1:8080 --insecure"


CHANGES = frozenset({"bundle", "log", "requests"})  # while it runs


class EdgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline edge` is given."""

    agent: options.AgentOptions
    reuse: options.Reuse
    gate: options.GateOptions
    journal: options.JournalOptions
    listen: options.Listen = "127.0.0.1:8080"
    tls: options.ServerTls
    api_tokens: Annotated[Path | None, "TOML file of who may ask with which token, over HTTP."] = None
    insecure: options.Insecure = False
    allow_url: Annotated[
        list[str] | None, "HOST (or HOST:PORT) that http(s) URLs of images may name; may be given again."
    ] = None
    allow_origin: Annotated[
        list[str] | None, "Origin, such as https://app.example, whose pages may ask this agent; may be given again."
    ] = None
    encoder: Annotated[
        Path | None, "Bundle of a dual encoder, which makes rows of texts and images at `/v1/embeddings`."
    ] = None
    requests: Annotated[
        int,
        "Questions in work at once that need a worker, and as many that the device may answer; one more is told to "
        "come later.",
    ] = 8
    log: options.Log = "text"


@with_options
def edge(*, context: typer.Context, config: Config = None, given: EdgeOptions) -> None:
    """Run an edge agent: it answers `POST /v1/chat/completions` until it is stopped.

    Prints the address it listens at as its first line. `cutline ask --agent URL` asks it. Ctrl-C or SIGTERM stops it
    in order, with exit code 0, a second one at once. With profiles, mode auto plans each request: cut, format and
    drafting. It is asked over HTTPS by who has a token of --api-tokens; where others can reach it, its second line is a
    link that lets one browser in. --ca, --cert, --key and --token-file are for its worker.
    """
    import asyncio
    import logging

    from cutline.cli.process.reload import Reload
    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import agent_opener, check_listen, open_encoder, open_recorder, open_server_keys
    from cutline.cli.terminal.logs import change_form, write_logs
    from cutline.edge.api.access.login import LINK_SECONDS, LoginCode
    from cutline.edge.api.server import ServerOptions, serve
    from cutline.protos.channel.address import is_loopback, parse_address, reached_at
    from cutline.protos.channel.token_file import Tokens

    write_logs(given.log)
    path = given.agent.bundle
    requests = _places(given.requests)
    keys = open_server_keys(given.tls)
    secured = keys is not None and given.api_tokens is not None
    needs = "--tls-cert, --tls-key and --api-tokens"
    check_listen(given.listen, secured=secured, insecure=given.insecure, needs=needs)
    tokens = None if given.api_tokens is None else Tokens(given.api_tokens, agent=True)
    journal = open_recorder(given.journal)
    open_agent = agent_opener(given.agent, given.reuse, cuts=True, gate=given.gate, journal=journal)
    invitation = None if tokens is None or is_loopback(parse_address(given.listen)[0]) else LoginCode()
    serving = ServerOptions(
        listen=given.listen,
        allow_urls=given.allow_url or (),
        allow_origins=given.allow_origin or (),
        most=lambda: requests,
        keys=keys,
        tokens=tokens,
        link=invitation,
        encoder=open_encoder(given.encoder, given.agent),
    )

    def announce(address: str) -> None:
        signals.ready()
        print(f"agent listens at {address}", flush=True)
        if invitation is not None:
            url = f"https://{reached_at(address)}/?code={invitation.code}"
            print(f"for one browser, within {LINK_SECONDS / 60:.0f} minutes: {url}", flush=True)

    def change(to: Mapping[str, Any]) -> None:
        nonlocal requests, path
        places = _places(to["requests"])
        change_form(to["log"])
        requests, path = places, to["bundle"]

    async def run(signals: Signals) -> None:
        stop = asyncio.Event()
        async with open_agent() as agent:
            if (why := agent.state().why) is not None:
                logging.getLogger(__name__).warning("not ready: %s", why)
            _say_anew(agent.manifest, logging.getLogger(__name__).warning)
            signals.end_by_setting(stop)
            tell, loop = logging.getLogger(__name__).warning, asyncio.get_running_loop()
            reload = Reload(context, CHANGES, change, tell=tell)

            def reread() -> None:
                reload()
                if not given.agent.no_drafter:
                    _take_drafter(agent, path, loop, tell)

            signals.reread_by(reread)
            await serve(agent, serving, announce=announce, stop=stop)
        leave(0)

    with Signals() as signals:
        asyncio.run(run(signals))


def _places(requests: int) -> int:
    """How many questions may be in work. Raises InputError."""
    if requests < 1:
        raise InputError(f"{requests} requests at once are none; give 1 or more")
    return requests


def _take_drafter(
    agent: Agent, path: Path | None, loop: asyncio.AbstractEventLoop, tell: Callable[[str], object]
) -> None:
    """Have the agent, which runs in `loop`, go on with the drafter at `path` if that is another; says so in a line."""
    import asyncio

    from cutline.cli.setting import open_drafter
    from cutline.errors import CutlineError

    try:
        found = open_drafter(path)
        known, now = ((one.identity, one.calibration) for one in (agent.manifest, found.manifest))
        if known == now:
            return
        asyncio.run_coroutine_threadsafe(agent.take(found), loop).result()
    except CutlineError as error:
        tell(f"the drafter stays as it is: {error}")
        return
    tell(f"{found.path} drafts from now on, and keeps nothing until it has shown that it may")
    _say_anew(found.manifest, tell)


def _say_anew(manifest: Manifest, tell: Callable[[str], object]) -> None:
    """Say so if a drafter learnt from what was deleted since."""
    if manifest.origin is not None and manifest.origin.learnt is not None and manifest.origin.learnt.anew:
        tell(f"{manifest.name} learnt from answers that were deleted since: make another with `cutline learn`")
