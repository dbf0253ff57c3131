"""The models that are at hand by name: weights that were pulled, and bundles that were exported or pulled.

All is below `$CUTLINE_HOME`, else below the user's folder for data:

    weights/OWNER--NAME--COMMIT     a commit of a model on a hub, and pulled.json, which says what it is
    bundles/OWNER--NAME--ROLE       a bundle
    .../.NAME.partial               what is not all there yet, of a pull or an export
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import read_regular, storing
from cutline.core.storage.seal import unseal
from cutline.errors import BundleError, InputError
from cutline.models.bundle import MANIFEST, manifest_at, read_manifest, sha256_of
from cutline.models.hub.names import ModelName, folder_name, name_in
from cutline.models.hub.origin import ModelOrigin

RECORD = "pulled.json"
PARTIAL = ".partial"
SHOWN_COMMIT = 12  # digits of a commit in names of folders
_MAX_RECORD = 1 << 20  # bytes

Kind = Literal["weights", "bundle", "unfinished", "broken"]
BundleRole = Literal["drafter", "target", "encoder"]


class PulledFile(msgspec.Struct, frozen=True):
    """A file of a model: its size in bytes, and the SHA-256 of what is in it."""

    size: int
    sha256: str


class PulledModel(msgspec.Struct, frozen=True, kw_only=True):
    """The weights of a model: its `name` on a `hub`, the `revision` that was asked for, its `commit`."""

    hub: str
    name: str
    revision: str
    commit: str
    files: Mapping[str, PulledFile]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


class LibraryEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model that is at hand: what it takes in bytes, and where it is.

    `version` is the commit of weights, and the identity of a bundle, which has a role.
    """

    name: str
    kind: Kind
    role: str = ""
    version: str = ""
    size: int
    path: str


class _Head(msgspec.Struct):
    """What a list shows of a manifest."""

    role: str
    identity: str = ""
    origin: ModelOrigin | None = None


def home() -> Path:
    """Where models are kept: `$CUTLINE_HOME`, else the user's folder for data. Raises InputError if there is none."""
    if given := os.environ.get("CUTLINE_HOME"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cutline"
    except RuntimeError:
        raise InputError("there is no home folder to keep models in; set CUTLINE_HOME") from None


def weights_path(name: str, commit: str) -> Path:
    """Where the weights of a commit belong."""
    return home() / "weights" / folder_name(name, commit[:SHOWN_COMMIT])


def bundle_path(name: str, role: BundleRole) -> Path:
    """Where the bundle of that name and role belongs."""
    return home() / "bundles" / folder_name(name, role)


def entries() -> list[LibraryEntry]:
    """All that is at hand, by name."""
    found = [*_weights(), *_bundles(), *_unfinished()]
    return sorted(found, key=lambda one: (one.name.lower(), one.kind, one.role, one.path))


def find_weights(name: ModelName) -> Path | None:
    """The weights of a model, of several commits those pulled last; None where there are none of that name."""
    found = [
        (path, record)
        for path in _folders("weights")
        if name_in(path.name) == name.name
        and ((record := read_record(path)).name == name.name)
        and (name.revision in (None, record.revision) or record.commit.startswith(str(name.revision)))
    ]
    return max(found, key=lambda one: (one[0] / RECORD).stat().st_mtime)[0] if found else None


def find_bundle(given: Path, role: BundleRole) -> Path:
    """The bundle that an option gives: a folder, or the name of a bundle at hand. Raises BundleError, InputError."""
    if (name := name_given(given)) is None:
        return given  # an opened bundle says so, if there is none
    path = bundle_path(name.name, role)
    if (path / MANIFEST).is_file():
        _check_revision(path, name)
        return path
    if find_weights(ModelName(name.name)) is not None:
        why = f"its weights are: `cutline export {name.name} --role {role}` makes it"
    else:
        why = f"`cutline list` says what is; `cutline pull {name.name}`, then `cutline export`, make one"
    raise BundleError(f"no bundle at {given}, nor a {role} of that name at hand; {why}")


def name_given(given: Path) -> ModelName | None:
    """The name that was given in place of a folder; None for a folder, and for what neither is there nor a name."""
    try:
        return None if given.exists() else ModelName.read(str(given))
    except (OSError, InputError):  # such as a path that is too long
        return None


def find_any_bundle(given: Path) -> Path:
    """As `find_bundle`, of whatever role. Raises InputError where there are several of that name."""
    name = name_given(given)
    found = [] if name is None else [one for one in entries() if (one.name, one.kind) == (name.name, "bundle")]
    if len(found) > 1:
        raise InputError(
            f"{given} is {' and '.join(one.role for one in found)}; give a folder of `cutline list --json`"
        )
    return Path(found[0].path) if found else given


def target_of(drafter: Path) -> Path | None:
    """The bundle at hand of the target that a drafter drafts for; None where there is none. Raises BundleError."""
    wanted = read_manifest(drafter).target
    return next((Path(one.path) for one in entries() if one.role == "target" and one.version == wanted), None)


def origin_of(weights: Path) -> ModelOrigin | None:
    """Where the weights in a folder were pulled from, None where they were not. Raises BundleError if they changed."""
    if not (weights / RECORD).is_file() or not weights.resolve().is_relative_to(home().resolve()):
        return None
    record = read_record(weights)
    for name, file in record.files.items():
        with storing(weights / name):
            if not (weights / name).is_file() or sha256_of(weights / name) != file.sha256:
                raise BundleError(
                    f"{weights / name} is not what was pulled; `cutline rm {record.name}`, and pull it again"
                )
    hashes = {name: file.sha256 for name, file in record.files.items()}
    return ModelOrigin(record.hub, record.name, record.revision, record.commit, hashes)


def read_record(folder: Path) -> PulledModel:
    """What the weights in a folder are. Raises BundleError."""
    try:
        return msgspec.json.decode(read_regular(folder / RECORD, limit=_MAX_RECORD), type=PulledModel)
    except (*UNREADABLE, OSError):
        raise BundleError(f"{folder / RECORD} does not read; remove the folder, and pull the model again") from None


def remove(name: ModelName, *, kind: Kind | None = None, role: str | None = None) -> list[LibraryEntry]:
    """Remove all of that name, or that which is of a kind, a role or a commit; gives what it was.

    Raises InputError where there is none, StorageError if the disk fails.
    """
    gone = [
        one
        for one in entries()
        if one.name == name.name
        and kind in (None, one.kind)
        and role in (None, one.role)
        and (name.revision is None or one.version.startswith(name.revision))
    ]
    if not gone:
        raise InputError(f"{name} is not here; `cutline list` says what is")
    for one in gone:
        path = Path(one.path)
        with storing(path):
            for record in (RECORD, MANIFEST):  # first, for what is half there is not there
                (path / record).unlink(missing_ok=True)
            shutil.rmtree(path)
    return gone


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder and below; one that goes meanwhile counts nothing."""
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.lstat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return size


def _check_revision(path: Path, name: ModelName) -> None:
    """Raises BundleError for a bundle of another revision than that of a name."""
    if name.revision is None:
        return
    origin = _head(path).origin
    if origin is None or not (name.revision == origin.revision or origin.commit.startswith(name.revision)):
        of = "no known commit" if origin is None else f"{origin.revision}, commit {origin.commit}"
        raise BundleError(f"the bundle {path} is of {of}, not of {name.revision}; export it again")


def _head(path: Path) -> _Head:
    """The head of a bundle's manifest. Raises BundleError."""
    try:
        return msgspec.json.decode(unseal(manifest_at(path)), type=_Head)
    except (*UNREADABLE, ValueError):
        raise BundleError(f"the manifest of {path} does not read; remove the folder, and make it again") from None


def _folders(kind: str) -> list[Path]:
    """Folders of models that are all there."""
    last = RECORD if kind == "weights" else MANIFEST
    return [path.parent for path in (home() / kind).glob(f"*/{last}") if not path.parent.name.startswith(".")]


def _weights() -> Iterator[LibraryEntry]:
    for path in _folders("weights"):
        try:
            record = read_record(path)
        except BundleError:
            yield _broken(path)
        else:
            size = size_of(path)
            yield LibraryEntry(name=record.name, kind="weights", version=record.commit, size=size, path=str(path))


def _bundles() -> Iterator[LibraryEntry]:
    for path in _folders("bundles"):
        name, size = name_in(path.name), size_of(path)
        try:
            head = _head(path)
        except BundleError:
            yield _broken(path)
        else:
            yield LibraryEntry(
                name=name, kind="bundle", role=head.role, version=head.identity, size=size, path=str(path)
            )


def _broken(path: Path) -> LibraryEntry:
    """What `rm` can still remove."""
    return LibraryEntry(name=name_in(path.name), kind="broken", size=size_of(path), path=str(path))


def _unfinished() -> Iterator[LibraryEntry]:
    for path in sorted(home().glob(f"*/.*{PARTIAL}")):
        name = name_in(path.name.removeprefix(".").removesuffix(PARTIAL))
        yield LibraryEntry(name=name, kind="unfinished", size=size_of(path), path=str(path))
