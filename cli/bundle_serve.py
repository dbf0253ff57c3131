"""`cutline bundle serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import with_options
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.encoders.bundle import EncoderBundle

EPILOG = "Example: cutline bundle serve HuggingFaceTB/SmolVLM-256M-Instruct --insecure"


class BundleServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline bundle serve` is given."""

    listen: options.Listen = "127.0.0.1:8090"
    tls: options.ServerTls
    tokens: Annotated[Path | None, "TOML file of who may pull with which token, of `cutline keys token`."] = None
    insecure: options.Insecure = False


@with_options
def serve_bundles(
    *,
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders of bundles, or names of such.")],
    given: BundleServeOptions,
) -> None:
    """Give finished bundles to devices, which pull them by `cutline pull URL`, until it is stopped.

    All files are verified before. Prints the address it listens at as its first line, and a URL for each bundle. Any
    server of files does as well: a bundle is its folder.
    """
    import asyncio

    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import check_listen, open_server_keys
    from cutline.edge.api.bundles import bundle_application
    from cutline.edge.api.server import names_of, serve_application
    from cutline.protos.channel.address import parse_address, reached_at
    from cutline.protos.channel.token_file import Tokens

    keys = open_server_keys(given.tls)
    secured = keys is not None and given.tokens is not None
    check_listen(given.listen, secured=secured, insecure=given.insecure, needs="--tls-cert, --tls-key and --tokens")
    served = _opened(bundles)
    tokens = None if given.tokens is None else Tokens(given.tokens)
    hosts = names_of(parse_address(given.listen)[0]) if tokens is None else None
    app = bundle_application(served, tokens=tokens, hosts=hosts)
    scheme = "http" if keys is None else "https"

    def announce(address: str) -> None:
        signals.ready()
        print(f"bundle server listens at {address}", flush=True)
        for name in served:
            print(f"cutline pull {scheme}://{reached_at(address)}/{name}", flush=True)

    async def run(signals: Signals) -> None:
        stop = asyncio.Event()
        signals.end_by_setting(stop)
        await serve_application(app, given.listen, keys, announce=announce, stop=stop)
        leave(0)

    with Signals() as signals:
        asyncio.run(run(signals))


def _opened(given: list[Path]) -> dict[str, Bundle | EncoderBundle]:
    """The bundles by the names that they are given away by. Raises InputError, BundleError."""
    from cutline.models.bundle import part_at
    from cutline.models.encoders.bundle import is_encoder
    from cutline.models.hub.library import find_any_bundle
    from cutline.models.hub.names import ModelName

    served = dict[str, Bundle | EncoderBundle]()
    for one in given:
        path = find_any_bundle(one)
        name = ModelName.read(path.resolve().name if one.exists() else str(one)).name
        if name in served:
            raise InputError(f"two of these bundles are called {name}; a server gives one of each name")
        served[name] = EncoderBundle.open(path) if is_encoder(path) else Bundle.open(path, part_at(path))
    return served
