"""The tokens file: the tokens of tenants and their quotas. Workers and agents read it.

    [[token]]
    tenant = "warehouse"
    sha256 = "..."               # of the token, in hexadecimal; the token itself is not stored

    [tenant.warehouse]           # optional, and so is each of its keys
    sessions = 4                 # at once
    openings_per_minute = 60
    priority = "normal"          # the highest that its requests may have
    upload_mb_per_second = 8.0   # in a worker's file only

It is reloaded when it changes. If it cannot be read then, the last good version stays and an error is logged. A token
is 256 random bits, so its hash needs neither salt nor a slow function.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Annotated

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import TENANT, Priority
from cutline.errors import InputError
from cutline.protos.channel.reloading import Renewed

MAX_BYTES = 1 << 20  # of the file: some 8,000 tokens
MAX_TOKEN = 512  # characters; a longer text is not a token, and is not hashed
SHA256 = r"^[0-9a-f]{64}\Z"

_WORKER_KEYS = frozenset({"journal", "upload_mb_per_second"})  # keys that an agent does not enforce

_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The quota of one tenant on a worker, or on an agent, whose sessions are the requests in progress.

    Without `sessions` a tenant may use all places that no other tenant waits for. With `journal` answers to it may be
    kept, by a worker that keeps any. Its requests have no higher `priority`, whatever they ask for.
    """

    sessions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    openings_per_minute: _Positive = 6000.0
    upload_mb_per_second: _Positive = 512.0  # 4 Gbit/s, so that fast links can be measured
    journal: bool = False
    priority: Priority = Priority.INTERACTIVE


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: Annotated[str, msgspec.Meta(pattern=TENANT)]
    sha256: Annotated[str, msgspec.Meta(pattern=SHA256)]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: tuple[_Entry, ...] = ()
    tenant: dict[Annotated[str, msgspec.Meta(pattern=TENANT)], Quota] = {}  # msgspec copies it


class Tokens:
    """The tokens file at `path`, of an agent or a worker. Raises InputError if it cannot be read at first."""

    def __init__(self, path: Path, *, agent: bool = False) -> None:
        foreign = _WORKER_KEYS if agent else frozenset[str]()
        self._content = Renewed("the tokens file", (path,), lambda: _read(path, foreign))

    def tenant(self, token: str) -> str | None:
        """The tenant of `token`, None if it is unknown. Takes equal time for any: it compares every entry in full."""
        given = token_hash(token) if len(token) <= MAX_TOKEN else ""
        found = None
        for entry in self._content.now().token:
            if hmac.compare_digest(entry.sha256, given):
                found = entry.tenant
        return found

    def limits(self, tenant: str) -> Quota:
        """The quota of `tenant`."""
        return self._content.now().tenant.get(tenant, Quota())


def token_hash(token: str) -> str:
    """The hash of a token in the tokens file."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def token_entry(tenant: str, token: str) -> str:
    """The lines to append to a tokens file to accept `token` as `tenant`. Raises InputError."""
    return f'\n[[token]]\ntenant = "{check_tenant(tenant)}"\nsha256 = "{token_hash(token)}"\n'


def check_tenant(name: str) -> str:
    """A tenant's name, which is also that of a device's certificate. Raises InputError."""
    if not re.fullmatch(TENANT, name):
        raise InputError(f"{name[:80]!r} is no tenant's name; take letters, digits, dots, dashes and _, 64 at most")
    return name


def is_tenant(name: str) -> bool:
    """Whether `name` is a valid name of a tenant."""
    return re.fullmatch(TENANT, name) is not None


def _read(path: Path, foreign: frozenset[str]) -> _Content:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"the tokens file {path} is larger than {MAX_BYTES >> 20} MiB")
        content = msgspec.toml.decode(text, type=_Content)
        for tenant, given in msgspec.toml.decode(text).get("tenant", {}).items():
            if wrong := sorted(foreign & given.keys()):
                raise InputError(
                    f"{path}: {wrong[0]} of tenant {tenant} is for a worker, not for an agent; take it out"
                )
        return content
    except OSError as error:
        raise InputError(f"cannot read the tokens file {path}: {error.strerror}") from None
    except UNREADABLE as error:
        raise InputError(f"the tokens file {path} does not read: {error}") from None
