"""Downloads files over HTTP. Each goes on where it was broken off, takes no byte too many, and is verified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import httpx
import msgspec

from cutline.core.storage.files import storing
from cutline.errors import AccessDenied, BundleError, InputError, StorageError, WorkerUnavailable

SPARE = 64 << 20  # bytes of the disk that are left free
_BLOCK = 1 << 20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may do better soon
_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(?:\d{1,15}|\*)")

OnBytes = Callable[[int], object]  # called with the bytes of a file that are here
OnTotal = Callable[[int, int], object]  # called with the bytes that are here, and those that there are
Tell = Callable[[str], object]  # called with a line about what goes on


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is to be had: its `size` in bytes, and its SHA-256 or, where that is not known, git's name for it."""

    name: str
    url: str
    size: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a silent server is waited for, in seconds, and how often it is asked again without getting further."""

    timeout: float = 15.0
    tries: int = 5
    sleep: Callable[[float], object] = time.sleep


class _Digests:
    """The hashes of what came of a file so far."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        self.sha256.update(piece)
        if not self._file.sha256:
            self._blob.update(piece)

    @property
    def right(self) -> bool:
        if self._file.sha256:
            return self.sha256.hexdigest() == self._file.sha256
        return self._blob.hexdigest() == self._file.blob


class Downloader:
    """Downloads files by a `client`; `denied` says what to do where a server wants to know who asks."""

    def __init__(self, client: httpx.Client, patience: Patience, *, denied: str) -> None:
        self._client = client
        self._patience = patience
        self._denied = denied

    def fetch(self, file: RemoteFile, folder: Path, on_bytes: OnBytes) -> str:
        """Download a file into a folder, if it is not there already; returns its SHA-256.

        What came of it stays beside it if this fails, for the next attempt, unless it is wrong.

        Raises InputError if the server has no such file, AccessDenied, WorkerUnavailable if it does not answer or broke
        off too often, BundleError if the file is not what it should be, StorageError if the disk is full or fails.
        """
        target, part = folder / file.name, folder / f".{file.name}.part"
        with storing(target):
            if target.is_file() and not target.is_symlink():
                os.replace(target, part)  # verified like what comes  # noqa: PTH105
            try:
                with _opened(part) as out:
                    digests = self._complete(file, out, on_bytes)
                    if not digests.right:
                        where = httpx.URL(file.url).host
                        raise BundleError(f"{file.name} is not what {where} said it is (hash differs), and was dropped")
                    os.fsync(out.fileno())
            except BundleError:
                part.unlink()
                raise
            part.replace(target)
        return digests.sha256.hexdigest()

    def _complete(self, file: RemoteFile, out: FileIO, on_bytes: OnBytes) -> _Digests:
        """Download what is not there yet."""
        digests = _Digests(file)
        held = best = _read(out, file.size, digests)
        failures = 0
        on_bytes(held)
        while held < file.size:
            why = "the link broke"
            try:
                with self._response(file, held) as response:
                    if held and response.status_code != 206:  # it knows no ranges: all comes again
                        held, digests = _restart(out), _Digests(file)
                    for piece in response.iter_raw():  # of no set size: what waits for more is lost with the link
                        if held + len(piece) > file.size:
                            raise _lied(file)
                        _write(out, piece)
                        digests.update(piece)
                        held += len(piece)
                        on_bytes(held)
            except Passing as error:
                why = str(error)
            except (httpx.TransportError, httpx.StreamError) as error:
                why = " ".join(str(error).split())[:120] or type(error).__name__
            if held == file.size:
                break
            failures, best = (1, held) if held > best else (failures + 1, best)
            if failures >= self._patience.tries:
                where = httpx.URL(file.url).netloc.decode()
                raise WorkerUnavailable(f"{where} did not give all of {file.name} ({why}); pull again, and it goes on")
            self._patience.sleep(min(2.0 ** (failures - 1), 30.0))
        return digests

    @contextmanager
    def _response(self, file: RemoteFile, start: int) -> Iterator[httpx.Response]:
        """The answer that has the file, from byte `start` on, or all of it. Raises as `fetch`, and Passing."""
        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={start}-"} if start else {})
        with self._client.stream("GET", file.url, headers=headers) as response:
            check_status(response, file.name, self._denied)
            came = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code == 206 and (came is None or int(came[1]) != start):
                raise BundleError(f"{response.url.host} gave another part of {file.name} than it was asked for")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BundleError(f"{response.url.host} gives {file.name} compressed, which nobody asked for")
            said = response.headers.get("content-length", "")
            before = start if response.status_code == 206 else 0
            if said.isdecimal() and before + int(said) != file.size:
                raise _lied(file)
            yield response


def fetch_all(by: Downloader, files: Sequence[RemoteFile], folder: Path, on_total: OnTotal) -> dict[str, str]:
    """Download files into a folder; returns their hashes. Raises as `Downloader.fetch`."""
    size, before = sum(file.size for file in files), 0
    hashes = {}
    for file in files:

        def on_bytes(held: int, before: int = before) -> None:
            on_total(before + held, size)

        hashes[file.name] = by.fetch(file, folder, on_bytes)
        before += file.size
    return hashes


class Passing(Exception):
    """A server that may do better soon."""


def check_status(response: httpx.Response, name: str, denied: str) -> None:
    """Raises InputError where a server has no file of that name, AccessDenied, and Passing."""
    status, where = response.status_code, response.url.netloc.decode()
    if status in (200, 206):
        return
    if status in _PASSING:
        raise Passing(f"status {status}")
    if status in (401, 403):
        raise AccessDenied(f"{where} gives {name} only to who may have it; {denied}")
    if status in (404, 410):
        raise InputError(f"{where} has no {name}")
    raise InputError(f"{where} does not give {name}: status {status}")


def check_room(folder: Path, files: Sequence[RemoteFile]) -> None:
    """Raises StorageError where the disk has no room for what is not in the folder yet."""
    wanted = SPARE
    for file in files:
        here = (folder / file.name, folder / f".{file.name}.part")
        wanted += file.size - max((one.stat().st_size for one in here if one.is_file()), default=0)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise StorageError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, and this takes {wanted / 1e9:.1f}; make room, or have "
            "CUTLINE_HOME name another folder"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes. Raises InputError, also if it is a link."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is at {folder} already; wait for it") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _opened(part: Path) -> Iterator[FileIO]:
    """The file that parts are put into, which is no link to another."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as out:
        yield out


def _read(out: FileIO, size: int, digests: _Digests) -> int:
    """The bytes that an earlier attempt left; more than the file's size are none of it."""
    if os.fstat(out.fileno()).st_size > size:
        return _restart(out)
    while piece := out.read(_BLOCK):
        digests.update(piece)
    return out.tell()


def _restart(out: FileIO) -> int:
    out.seek(0)
    out.truncate()
    return 0


def _write(out: FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[out.write(rest) :]


def _lied(file: RemoteFile) -> BundleError:
    where = httpx.URL(file.url).host
    return BundleError(f"{where} gives another size of {file.name} than the {file.size} bytes that it said")
