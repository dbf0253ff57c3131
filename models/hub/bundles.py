"""Pulls bundles from who serves them over HTTP, for devices where nobody exports: `cutline bundle serve`, or any files.

A bundle is its manifest and the files that it lists, side by side below a URL. Its manifest comes first and has the
hashes of the rest; it takes its place once all is there and verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from cutline.core.storage.files import replace_file, storing, sync_folder
from cutline.errors import BundleError, InputError, WorkerUnavailable
from cutline.models.bundle import MANIFEST, MAX_MANIFEST, Bundle, Manifest, Part, device_files, read_manifest
from cutline.models.encoders.bundle import EncoderBundle, EncoderManifest, is_encoder, read_encoder_manifest
from cutline.models.hub.download import (
    Downloader,
    OnTotal,
    Passing,
    Patience,
    RemoteFile,
    Tell,
    check_room,
    check_status,
    fetch_all,
    locked,
)
from cutline.models.hub.library import PARTIAL, SHOWN_COMMIT, bundle_path, home
from cutline.models.hub.names import ModelName, folder_name

MOST_FILES = 2000
DENIED = "give a token that it knows with --token-file"
_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,150}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")

AnyBundle = Bundle | EncoderBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSource:
    """Where a bundle is served: a `url` without its files' names, whom to `trust`, and the `token` that is shown.

    `near` says that no proxy is to come between.
    """

    url: str
    trust: ssl.SSLContext | None = None
    token: str = ""
    near: bool = False

    def client(self, patience: Patience) -> httpx.Client:
        """What asks there. It is sent nowhere else."""
        return httpx.Client(
            headers={"authorization": f"Bearer {self.token}"} if self.token else {},
            verify=True if self.trust is None else self.trust,
            timeout=patience.timeout,
            trust_env=not self.near,
        )

    def of(self, file: str) -> str:
        """The URL of a file."""
        return f"{self.url.rstrip('/')}/{file}"


def pull_bundle(
    source: BundleSource,
    *,
    name: str | None = None,
    part: Part = "whole",
    tell: Tell,
    on_total: OnTotal,
    patience: Patience | None = None,
) -> tuple[str, AnyBundle]:
    """Pull a bundle, unless it is here; returns the name that it is kept by, and the bundle itself.

    Without a `name` it is that in the URL. A pull that was broken off goes on. Raises InputError if nobody serves a
    bundle there, AccessDenied, WorkerUnavailable if nobody answers, BundleError if what comes is not what its manifest
    says, StorageError if there is no room.
    """
    patience = Patience() if patience is None else patience
    with source.client(patience) as client:
        content = _manifest(client, source)
        digest = hashlib.sha256(content).hexdigest()
        folder = home() / "bundles"
        kept = ModelName.read(name or _name_in(source.url)).name
        partial = folder / f".{folder_name(kept, digest[:SHOWN_COMMIT])}{PARTIAL}"
        with locked(partial):
            with storing(partial):
                replace_file(partial / MANIFEST, content)
            manifest = _read(partial, source)
            place = bundle_path(kept, manifest.role)
            if (here := _same(place, content, part)) is not None:
                tell(f"{kept} is here already, identity {manifest.identity[:12]}")
                _drop(partial)
                return kept, here
            files = _files(client, source, manifest, part)
            size = sum(file.size for file in files)
            tell(f"{kept}: {manifest.role}, {manifest.precision}, {len(files)} files, {size / 1e6:.1f} MB")
            check_room(partial, files)
            fetch_all(Downloader(client, patience, denied=DENIED), files, partial, on_total)
            _opened(partial, manifest, part)
            _place(partial, place)
    return kept, _opened(place, manifest, part)


def _manifest(client: httpx.Client, source: BundleSource) -> bytes:
    """The content of the manifest. Raises as `pull_bundle`."""
    url, content = source.of(MANIFEST), bytearray()
    where = httpx.URL(url).netloc.decode()
    try:
        with client.stream("GET", url) as response:
            check_status(response, MANIFEST, DENIED)
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_MANIFEST:
                    raise BundleError(f"{where} gives a manifest of more than {MAX_MANIFEST} bytes, which is none")
    except Passing as error:
        raise WorkerUnavailable(f"{where} cannot give a bundle now ({error}); try again later") from None
    except httpx.HTTPError as error:
        raise WorkerUnavailable(f"{where} does not answer ({_why(error)})") from None
    return bytes(content)


def _read(partial: Path, source: BundleSource) -> Manifest | EncoderManifest:
    """The manifest that came. Raises BundleError."""
    try:
        return read_encoder_manifest(partial) if is_encoder(partial) else read_manifest(partial)
    except BundleError as error:
        _drop(partial)
        raise BundleError(f"{source.url} has no bundle that this version reads: {error}") from None


def _files(
    client: httpx.Client, source: BundleSource, manifest: Manifest | EncoderManifest, part: Part
) -> list[RemoteFile]:
    """The files of a part of the bundle, with their sizes. Raises as `pull_bundle`."""
    names = sorted(device_files(manifest) if part == "device" and isinstance(manifest, Manifest) else manifest.files)
    if len(names) > MOST_FILES:
        raise BundleError(f"{source.url} lists {len(names)} files, more than a bundle has")
    found = []
    for name in names:
        if _FILE.fullmatch(name) is None or name == MANIFEST or not _SHA256.fullmatch(manifest.files[name]):
            raise BundleError(f"{source.url} lists a file {name[:80]!r}, which is none of a bundle; nothing was taken")
        url = source.of(name)
        try:
            response = client.head(url, headers={"accept-encoding": "identity"})
            check_status(response, name, DENIED)
        except Passing as error:
            raise WorkerUnavailable(f"{source.url} cannot give {name} now ({error}); try again later") from None
        except httpx.HTTPError as error:
            raise WorkerUnavailable(
                f"{source.url} does not answer ({_why(error)}); pull again, and it goes on"
            ) from None
        size = response.headers.get("content-length", "")
        if not re.fullmatch(r"\d{1,12}", size, re.ASCII):
            raise BundleError(f"{source.url} does not say how large {name} is")
        found.append(RemoteFile(name=name, url=url, size=int(size), sha256=manifest.files[name]))
    return found


def _same(place: Path, content: bytes, part: Part) -> AnyBundle | None:
    """The bundle that is in its place already, if it has the same manifest, and all that was asked for."""
    try:
        if (place / MANIFEST).read_bytes() == content:
            return EncoderBundle.open(place) if is_encoder(place) else Bundle.open(place, part)
    except (OSError, BundleError):
        pass
    return None


def _opened(path: Path, manifest: Manifest | EncoderManifest, part: Part) -> AnyBundle:
    return EncoderBundle.open(path) if isinstance(manifest, EncoderManifest) else Bundle.open(path, part)


def _place(partial: Path, place: Path) -> None:
    """Move a bundle to its place, from which an older one goes. Raises StorageError if the disk fails."""
    with storing(place), TemporaryDirectory(dir=place.parent, prefix=".replaced.") as away:
        older = Path(away) / "bundle"
        with contextlib.suppress(FileNotFoundError):
            place.rename(older)
        try:
            partial.rename(place)
        except OSError:
            if older.exists():
                older.rename(place)
            raise
        sync_folder(place.parent)


def _drop(partial: Path) -> None:
    """Remove a folder of which nothing but the manifest came."""
    with contextlib.suppress(OSError):  # more came before, and another attempt may go on from it
        (partial / MANIFEST).unlink()
        partial.rmdir()


def _name_in(url: str) -> str:
    """The name of a bundle that is in its URL: OWNER/NAME, or the last part alone."""
    path = [one for one in httpx.URL(url).path.split("/") if one]
    if not path:
        raise InputError(f"{url} ends in no name of a bundle; add it, as `cutline bundle serve` printed it")
    for parts in (path[-2:], path[-1:]):
        name = "/".join(parts)
        with contextlib.suppress(InputError):
            return ModelName.read(name).name
    raise InputError(f"{path[-1][:80]!r} in {url} is no name for a bundle; give one with --name")


def _why(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "nobody that is known here vouches for it; give --ca, the file of who does"
    return " ".join(str(error).split())[:160] or type(error).__name__
