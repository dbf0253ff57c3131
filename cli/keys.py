"""`cutline keys`: certificates of a private authority, and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli import options
from cutline.errors import CutlineError
from cutline.errors.extras import missing
from cutline.errors.names import printable

if TYPE_CHECKING:
    from cutline.cli.access.certificates import Pair

app = typer.Typer(help="Make certificates and tokens, by which workers and agents know each other.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the authority and of what it signed.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Name or address that a worker is reached by; repeatable.", show_default=False),
]
Days = Annotated[int, typer.Option(help="Days that the certificates are good for.")]

LEAF_DAYS = 397  # what browsers take at most, and long enough to be renewed by hand

REVOKED = "revoked.toml"  # in the folder of the authority


@app.command(epilog="Example: cutline keys init keys --host worker.example --host 192.0.2.7 --device camera1")
def init(
    folder: Folder,
    host: Hosts = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", help="Device that gets a certificate of this name; repeatable.", show_default=False),
    ] = None,
    days: Days = LEAF_DAYS,
    as_json: options.Json = False,
) -> None:
    """Make an authority, a certificate for workers, and one for each device. Nothing is ever written over.

    A device's name is its tenant's, too. Keep ca.key away from workers and devices: who has it can be any of them.
    """
    certificates = _certificates()
    hosts = (*(host or ()), *certificates.ALWAYS)
    certificates.check(names=("server", *(device or ())), hosts=hosts, days=days)
    authority = certificates.Authority.make(folder)
    server = authority.sign("server", certificates.SERVER, hosts=hosts, days=days)
    devices = {name: authority.sign(name, certificates.DEVICE, days=days) for name in device or ()}
    authority.write({REVOKED: "# Certificates of devices that are not taken any more, by `cutline keys revoke`.\n"})
    ca = certificates.pair_of(folder, "ca").certificate
    _tell(
        {"ca": _path(ca), "server": _files(server), "devices": {name: _files(pair) for name, pair in devices.items()}},
        [*_for_worker(server, ca), *(line for name, pair in devices.items() for line in _for_device(name, pair, ca))],
        as_json,
    )


@app.command("add-server", epilog="Example: cutline keys add-server keys worker2 --host 192.0.2.8")
def add_server(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="What its files are called.")],
    host: Hosts = None,
    days: Days = LEAF_DAYS,
    as_json: options.Json = False,
) -> None:
    """Make a certificate for another worker, or a new one in place of one that ends."""
    certificates = _certificates()
    authority = certificates.Authority.open(folder)
    pair = authority.sign(name, certificates.SERVER, hosts=(*(host or ()), *certificates.ALWAYS), days=days)
    authority.write()
    ca = certificates.pair_of(folder, "ca").certificate
    _tell({"ca": _path(ca), "server": _files(pair)}, _for_worker(pair, ca), as_json)


@app.command("add-device", epilog="Example: cutline keys add-device keys camera2")
def add_device(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The device's name, and its tenant's.")],
    days: Days = LEAF_DAYS,
    as_json: options.Json = False,
) -> None:
    """Make a certificate for another device, or for a worker that goes on to a next one."""
    certificates = _certificates()
    authority = certificates.Authority.open(folder)
    pair = authority.sign(name, certificates.DEVICE, days=days)
    authority.write()
    ca = certificates.pair_of(folder, "ca").certificate
    _tell({"ca": _path(ca), "devices": {name: _files(pair)}}, _for_device(name, pair, ca), as_json)


@app.command(epilog="Example: cutline keys revoke keys camera2")
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="What the certificate's file is called, without .crt.")],
    as_json: options.Json = False,
) -> None:
    """Shut out a device whose key is lost: its certificate is put on the list of those that are not taken any more.

    That is DIR/revoked.toml, which workers and directories read by --revoked, anew when it changes. On other machines
    put the new list in place of the old one. Calls that are under way are not ended.
    """
    from cutline.core.storage.files import extend_file
    from cutline.protos.channel.revocation import Revoked, revoked_entry

    owner, signed = _certificates().Authority.open(folder).signed(name)
    revoked = folder / REVOKED
    if not revoked.exists() or not Revoked(revoked).has(signed):  # what does not read is not added to
        extend_file(revoked, revoked_entry(owner, signed))
    Revoked(revoked)
    shown = _path(revoked)
    _tell({"revoked": owner, "list": shown}, [f"{owner} is shut out where --revoked is {shown}"], as_json)


@app.command(epilog="Example: cutline keys token keys/tokens.toml warehouse --out warehouse.token")
def token(
    tokens: Annotated[Path, typer.Argument(metavar="FILE", help="The tokens file; it is made where there is none.")],
    tenant: Annotated[str, typer.Argument(help="Who comes with this token; several may be one tenant's.")],
    out: Annotated[
        Path | None,
        typer.Option(help="New file for the token, instead of the terminal; its owner alone can read it."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a token, print it once, and let it in as TENANT: the tokens file gets its hash. A server reads that anew."""
    import secrets

    from cutline.core.storage.files import extend_file, write_new
    from cutline.protos.channel.token_file import Tokens, token_entry

    made = secrets.token_urlsafe(32)
    entry = token_entry(tenant, made)
    if tokens.exists():
        Tokens(tokens)  # what does not read is not added to
    if out is not None:
        write_new({out: made.encode() + b"\n"})
    try:
        extend_file(tokens, entry)
    except CutlineError:
        if out is not None:
            out.unlink()  # it would let nobody in
        raise
    Tokens(tokens)
    where = _path(out) if out is not None else "FILE, where nobody else can read it"
    shown = _path(tokens)
    lines = [
        f"to serve with it:  `cutline cloud` --tokens {shown}, or `cutline edge` --api-tokens {shown}",
        f"to come with it:   --token-file {where}",
        "                   or over HTTP `Authorization: Bearer TOKEN`",
    ]
    if out is None:
        lines.insert(0, made)
    _tell({"tenant": tenant, "tokens": shown, "token": made if out is None else None}, lines, as_json)


def _certificates() -> Any:
    """The module that makes certificates. Raises InputError where what it needs is not installed."""
    try:
        from cutline.cli.access import certificates
    except ModuleNotFoundError as error:
        raise missing(f"keys need {error.name}", "keys") from None
    return certificates


def _path(path: Path) -> str:
    return printable(str(path))


def _files(pair: Pair) -> dict[str, str]:
    return {"certificate": _path(pair.certificate), "key": _path(pair.key)}


def _for_worker(pair: Pair, ca: Path) -> list[str]:
    return [
        f"cutline cloud  --tls-cert {_path(pair.certificate)} --tls-key {_path(pair.key)} --client-ca {_path(ca)} "
        f"--revoked {_path(ca.with_name(REVOKED))}",
        "               or, with tokens of `cutline keys token`, --tokens FILE in place of the last two",
    ]


def _for_device(name: str, pair: Pair, ca: Path) -> list[str]:
    return [f"on {name}:  --worker HOST:PORT --ca {_path(ca)} --cert {_path(pair.certificate)} --key {_path(pair.key)}"]


def _tell(made: dict[str, Any], lines: list[str], as_json: bool) -> None:
    import sys

    import msgspec

    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(made) + b"\n")
    else:
        print("\n".join(lines))
