"""The work folder of an export, in which finished steps survive an interruption, also a kill.

It is a sibling of the new bundle, named `.NAME.partial`:

    lock            locked by the running export
    journal.jsonl   the finished steps, with the hashes of the files that each made
    bundle/         those files, and remains of an interrupted step
    replaced/       the old bundle, until the new one is in place
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec

from cutline.core.storage.files import sync_files, sync_folder
from cutline.core.storage.journal import Journal, open_journal
from cutline.errors import InputError
from cutline.models.bundle import sha256_of

Files = dict[str, str]  # SHA-256 by name of the files that a step made

REPLACED = "replaced"
CODE = Path(__file__).parent.parent  # cutline.models
MAKERS = (
    "cutline",
    "onnx",
    "onnxruntime-genai",
    "onnxscript",
    "torch",
    "transformers",
)  # packages that shape the files


class ExportWork:
    """An unfinished export in the folder `home`, whose lock is held."""

    def __init__(self, home: Path, journal: Journal) -> None:
        self.folder = home / "bundle"
        self._home = home
        self._journal = journal
        self._steps = dict[str, Files]()
        self.folder.mkdir(exist_ok=True)
        for name in journal.names:
            files = msgspec.json.decode(journal.get(name) or b"{}", type=Files)
            if _unchanged(self.folder, files):
                self._steps[name] = files
        for name in self._names() - self._finished():  # of an interrupted step, or another source
            left = self.folder / name
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def step(self, name: str, make: Callable[[Path], str]) -> str | None:
        """Have `make` write its files into the folder; returns its result, or None if an earlier attempt did it."""
        if name in self._steps:
            return None
        note = make(self.folder)
        sync_files(self.folder)
        files = {file: sha256_of(self.folder / file) for file in sorted(self._names() - self._finished())}
        self._journal.put(name, files)
        self._steps[name] = files
        return note

    def place(self, out: Path) -> None:
        """Move the folder to `out`, in place of an older bundle."""
        sync_files(self.folder)
        replaced = self._home / REPLACED
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            out.rename(replaced)
        self.folder.rename(out)
        sync_folder(out.parent)
        shutil.rmtree(self._home, ignore_errors=True)

    def leave(self) -> None:
        """Remove the work folder, unless another attempt can resume from it."""
        if not self._steps:
            shutil.rmtree(self._home, ignore_errors=True)

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def _finished(self) -> set[str]:
        return {file for files in self._steps.values() for file in files}


@contextmanager
def work_beside(out: Path, source: str) -> Iterator[ExportWork]:
    """The work folder beside `out` for an export of `source`; remains of another source are dropped.

    The folder stays if steps are finished but the bundle is not in place. Raises InputError if another process holds
    the lock, or if there is a symbolic link in the folder.
    """
    home = out.with_name(f".{out.name}.partial")
    with _locked(home, out):
        for path in home.iterdir():
            _refuse_link(path)
        if (home / REPLACED).exists() and not out.exists():  # killed between two renames
            (home / REPLACED).rename(out)
        with open_journal(home / "journal.jsonl", inputs=source) as journal:
            work = ExportWork(home, journal)
            try:
                yield work
            finally:
                work.leave()


def fingerprint(folder: Path, **options: str | None) -> str:
    """A hash of an export's inputs: the folder's files by name, size and time, the options, and all code involved."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    code = [sha256_of(path) for path in sorted(CODE.rglob("*.py"))]  # which may change without a new version
    facts = (str(folder.resolve()), files, options, {maker: version(maker) for maker in MAKERS}, code)
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def _unchanged(folder: Path, files: Files) -> bool:
    """Whether the files of a step have their old hashes."""
    return all((folder / file).is_file() and sha256_of(folder / file) == digest for file, digest in files.items())


def _refuse_link(path: Path) -> None:
    """Raises InputError for a link, which could make an export delete files of another folder."""
    if path.is_symlink():
        raise InputError(f"{path} is a link, where an export keeps its own files; remove it")


@contextmanager
def _locked(home: Path, out: Path) -> Iterator[None]:
    """Make the folder `home` and lock it against other processes; a kill releases the lock. Raises InputError."""
    path = home / "lock"
    while True:
        _refuse_link(home)
        home.mkdir(parents=True, exist_ok=True)
        _refuse_link(path)
        try:
            lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        except FileNotFoundError:
            continue  # the process that held it has just finished and removed it
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another export to {out} is running; wait for it, or choose another folder") from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                yield
                return
