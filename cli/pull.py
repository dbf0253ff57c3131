"""`cutline pull`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import with_options
from cutline.errors import InputError
from cutline.models.bundle import Part

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.models.hub.bundles import BundleSource
    from cutline.models.hub.download import OnTotal

EPILOG = "Example: cutline pull HuggingFaceTB/SmolVLM-256M-Instruct"


class PulledView(msgspec.Struct, frozen=True, kw_only=True):
    """What was pulled, as `--json` prints it."""

    name: str
    kind: str
    version: str  # the commit of weights, the identity of a bundle
    size: int
    path: str
    files: dict[str, str]  # SHA-256 of each


class PullOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline pull` is given."""

    name: Annotated[str | None, "With a URL: the name that the bundle is kept by; without it, that in the URL."] = None
    part: Annotated[Part, "With a URL: whole, or device, without a target's own weights."] = "whole"
    ca: Annotated[Path | None, "With a URL: certificates in PEM of who vouches for its server."] = None
    token_file: Annotated[Path | None, "With a URL: file that holds the token for its server."] = None
    as_json: options.Json = False


@with_options
def pull(
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="OWNER/NAME[@REVISION] on a hub, a pair, or the URL of a bundle.")
    ],
    given: PullOptions,
) -> None:
    """Pull weights from a hub, to export them by their name, or a bundle that somebody serves, to run it.

    Of weights only what an export reads is pulled. All is checked against the hub's or the bundle's hashes, and a pull
    that was broken off goes on. As always, HF_ENDPOINT names the hub, HF_TOKEN or HF_HOME who asks, and HF_HUB_OFFLINE
    forbids to ask. docs/reference/pairs.md lists the pairs. Prints the folder, or both; `cutline list` shows what is
    there.
    """
    import sys

    from rich.console import Console

    console = Console(stderr=True)
    with shown_bytes(console) as on_total:
        if "://" in model:
            views = [_bundle(model, given, console, on_total)]
        elif given != PullOptions(as_json=given.as_json):
            raise InputError("--name, --part, --ca and --token-file are for the URL of a bundle")
        elif "/" in model:
            views = [_weights(model, console, on_total)]
        else:
            views = _pair(model, console, on_total)
    if given.as_json:
        shown = views[0] if len(views) == 1 else {"pair": model, "pulled": views}
        sys.stdout.buffer.write(msgspec.json.encode(shown) + b"\n")
    else:
        print(*(view.path for view in views), sep="\n")


def _weights(model: str, console: Console, on_total: OnTotal) -> PulledView:
    from cutline.models.hub.names import ModelName
    from cutline.models.hub.weights import pull_weights

    folder, record = pull_weights(ModelName.read(model), tell=teller(console), on_total=on_total)
    return PulledView(
        name=record.name,
        kind="weights",
        version=record.commit,
        size=record.size,
        path=str(folder),
        files={name: file.sha256 for name, file in record.files.items()},
    )


def _pair(name: str, console: Console, on_total: OnTotal) -> list[PulledView]:
    """The weights of both models of a pair, and how they become bundles. Raises InputError for a pair of no name."""
    from cutline.models.hub.pairs import find_pair

    pair = find_pair(name)
    views = [_weights(model, console, on_total) for model in (pair.drafter, pair.target)]
    tell = teller(console)
    tell(f"next: cutline export {pair.target} --role target")
    tell(f"then: cutline export {pair.drafter} --role drafter --target {pair.target}")
    return views


def _bundle(url: str, given: PullOptions, console: Console, on_total: OnTotal) -> PulledView:
    from cutline.models.hub.bundles import pull_bundle

    name, bundle = pull_bundle(
        _source(url, given), name=given.name, part=given.part, tell=teller(console), on_total=on_total
    )
    return PulledView(
        name=name,
        kind="bundle",
        version=bundle.manifest.identity,
        size=sum(file.stat().st_size for file in bundle.path.iterdir()),
        path=str(bundle.path),
        files=dict(bundle.manifest.files),
    )


def _source(url: str, given: PullOptions) -> BundleSource:
    """Who serves the bundle at a URL. Raises InputError, also for one that would come in plain text from elsewhere."""
    import httpx

    from cutline.cli.setting import open_keys
    from cutline.models.hub.bundles import BundleSource
    from cutline.protos.channel.address import is_loopback
    from cutline.protos.channel.credentials import client_context, read_token

    try:
        read = httpx.URL(url)
    except httpx.InvalidURL:
        raise InputError(f"{url[:80]!r} is no URL of a bundle") from None
    if read.scheme not in ("http", "https") or not read.host or read.userinfo or read.query or read.fragment:
        raise InputError(f"{url[:80]!r} is no URL of a bundle; give https://HOST:PORT/NAME, as its server printed it")
    near = is_loopback(f"[{read.host}]" if ":" in read.host else read.host)
    if read.scheme == "http" and not near:
        raise InputError(f"a bundle from {read.host} would come in plain text; give an https URL, and --ca")
    keys = open_keys(options.WorkerKeys(ca=given.ca, token_file=given.token_file))
    token = "" if given.token_file is None else read_token(given.token_file)  # that of CUTLINE_TOKEN is for workers
    return BundleSource(url=url, trust=None if keys.ca is None else client_context(keys), token=token, near=near)


def teller(console: Console) -> Callable[[str], object]:
    """What shows a line about what goes on."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def shown_bytes(console: Console) -> Iterator[Callable[[int, int], object]]:
    """What shows how many bytes are here of those that there are: a bar, where somebody looks."""
    from rich import progress as bars

    columns = (bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        track = shown.add_task("", total=None)
        yield lambda held, size: shown.update(track, completed=held, total=size)
