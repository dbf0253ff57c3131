"""`cutline journal`: what is kept for learning, and how it is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.errors import InputError

if TYPE_CHECKING:
    from cutline.core.escalations.folder import EntryFile
    from cutline.core.storage.envelope import SealingKey

app = typer.Typer(help="Show and delete what `cutline edge --journal` keeps for learning.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The journal's folder.")]
Tenant = Annotated[
    str | None,
    typer.Option("--tenant", help="Of this tenant alone; '' is whoever came without a name.", show_default=False),
]
KeyFile = Annotated[
    Path | None, typer.Option("--journal-key-file", help="File of the key that seals it.", show_default=False)
]


class TenantEntries(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal has of a tenant: so many `entries` of `size` bytes, from the `oldest` to the `newest`.

    Where its key is known, or it has none, also how many are `torn`.
    """

    tenant: str
    entries: int
    size: int
    oldest: datetime
    newest: datetime
    torn: int | None = None


@app.command(epilog="Example: cutline journal show journal --tenant camera1")
def show(
    folder: Folder, tenant: Tenant = None, journal_key_file: KeyFile = None, as_json: options.Json = False
) -> None:
    """Say of each tenant how many answers are kept, how much room they take, and since when."""
    import sys

    from cutline.cli.setting import open_journal_key
    from cutline.cli.terminal.tables import amount

    found = _shown(folder, tenant, None if journal_key_file is None else open_journal_key(journal_key_file))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"tenants": found}) + b"\n")
        return
    for one in found:
        torn = "" if not one.torn else f", {one.torn} torn"
        print(
            f"{one.tenant or '(no name)'}: {one.entries} answers, {amount(one.size, 'B')}, "
            f"{one.oldest:%Y-%m-%d} to {one.newest:%Y-%m-%d}{torn}"
        )
    if not found:
        print(f"{folder} is empty")


@app.command(epilog="Example: cutline journal rm journal --tenant camera1")
def rm(folder: Folder, tenant: Tenant = None, as_json: options.Json = False) -> None:
    """Delete what is kept of a tenant, or of all. The agent that writes may go on meanwhile.

    Drafters that learnt from it are marked as to be made anew, where they are still where they were made: also where
    its answers have made room for others since.
    """
    import sys

    from cutline.core.escalations.folder import files_in, remove_tenant
    from cutline.core.escalations.learnt import learnt_from

    tenants = {tenant} if tenant is not None else {one.tenant for one in files_in(folder)}
    removed = {name: remove_tenant(folder, name) for name in sorted(tenants)}
    if tenant is None:
        tenants.update(*(record.tenants for record in learnt_from(folder)))
    marked = list(_marked(folder, tenants))
    if tenant is not None and not (removed[tenant] or marked):
        raise InputError(f"{folder} has nothing of {tenant!r}; `cutline journal show` says of whom it has")
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"removed": removed, "marked": marked}) + b"\n")
        return
    for name, count in removed.items():
        print(f"removed {count} answers of {name or '(no name)'}")
    for bundle in marked:
        print(f"{bundle} had learnt from them: it is marked, and to be made anew")


def _marked(folder: Path, tenants: set[str]) -> Iterator[str]:
    """Mark the drafters that learnt from answers to `tenants`; gives where they are. Raises StorageError."""
    from cutline.core.escalations.learnt import learnt_from
    from cutline.errors import BundleError
    from cutline.models.bundle import Bundle, set_origin

    for record in learnt_from(folder):
        if tenants.isdisjoint(record.tenants):
            continue
        with suppress(BundleError):  # it is gone
            found = Bundle.open(record.bundle)
            origin = found.manifest.origin
            if found.manifest.identity == record.identity and origin is not None and origin.learnt is not None:
                learnt = msgspec.structs.replace(origin.learnt, anew=True)
                set_origin(found, msgspec.structs.replace(origin, learnt=learnt))
                yield record.bundle


def _shown(folder: Path, tenant: str | None, key: SealingKey | None) -> list[TenantEntries]:
    """What the journal has of each tenant, or of one. Raises InputError."""
    from cutline.core.escalations.folder import files_in, is_torn

    by_tenant: dict[str, list[EntryFile]] = {}
    for file in files_in(folder, tenant):
        by_tenant.setdefault(file.tenant, []).append(file)
    found = []
    for name, files in by_tenant.items():
        torn = [is_torn(file, key) for file in files]
        found.append(
            TenantEntries(
                tenant=name,
                entries=len(files),
                size=sum(file.size for file in files),
                oldest=datetime.fromtimestamp(files[0].time, UTC),
                newest=datetime.fromtimestamp(files[-1].time, UTC),
                torn=None if None in torn else torn.count(True),
            )
        )
    return found
