"""The work folder of an export: what is finished in it survives an interruption, a kill included.

It lies beside the bundle that is made, as `.NAME.partial`:

    lock            held while somebody works here
    journal.jsonl   the steps that are finished, with the hashes of the files each of them made
    bundle/         those files, and what an interrupted step left
    replaced/       the bundle that stood in the new one's place, until that is there
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

from cutline.core.files import sync_files, sync_folder
from cutline.core.journal import Journal, open_journal
from cutline.errors import InputError
from cutline.models.bundle import sha256_of

Files = dict[str, str]  # SHA-256 by name, of what a step made

REPLACED = "replaced"
CODE = Path(__file__).parent.parent  # cutline.models
MAKERS = ("cutline", "onnx", "onnxruntime-genai", "onnxscript", "torch", "transformers")  # whose versions show in files


class ExportWork:
    """An export in the making, in the folder `home`, which is ours alone while we are here."""

    def __init__(self, home: Path, journal: Journal) -> None:
        self.folder = home / "bundle"
        self._home = home
        self._journal = journal
        self._steps = dict[str, Files]()
        self.folder.mkdir(exist_ok=True)
        for name in journal.names:
            files = msgspec.json.decode(journal.get(name) or b"{}", type=Files)
            if _stands(self.folder, files):
                self._steps[name] = files
        for name in self._names() - self._finished():  # of a step that was interrupted, or of another source
            left = self.folder / name
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def step(self, name: str, make: Callable[[Path], str]) -> str | None:
        """Have `make` write its files into the folder, and return what it does; None if they are there from before."""
        if name in self._steps:
            return None
        note = make(self.folder)
        sync_files(self.folder)
        files = {file: sha256_of(self.folder / file) for file in sorted(self._names() - self._finished())}
        self._journal.put(name, files)
        self._steps[name] = files
        return note

    def place(self, out: Path) -> None:
        """Move the folder to `out`, in place of a bundle that is there."""
        sync_files(self.folder)
        replaced = self._home / REPLACED
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            out.rename(replaced)
        self.folder.rename(out)
        sync_folder(out.parent)
        shutil.rmtree(self._home, ignore_errors=True)

    def leave(self) -> None:
        """Remove the work folder if nothing is in it that another attempt could go on from."""
        if not self._steps:
            shutil.rmtree(self._home, ignore_errors=True)

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def _finished(self) -> set[str]:
        return {file for files in self._steps.values() for file in files}


@contextmanager
def work_beside(out: Path, source: str) -> Iterator[ExportWork]:
    """The work folder beside `out`, for what is made from `source`; what another source left there is dropped.

    It stays when it is left with steps finished and not placed. Raises InputError when somebody else works there, and
    when a link there leads elsewhere.
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
    """Of what an export is made from: a folder's files by name, size and time, options, and the makers of its files."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    code = [sha256_of(path) for path in sorted(CODE.rglob("*.py"))]  # may change without a new version
    facts = (str(folder.resolve()), files, options, {maker: version(maker) for maker in MAKERS}, code)
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def _stands(folder: Path, files: Files) -> bool:
    """Whether the files of a step are what they were."""
    return all((folder / file).is_file() and sha256_of(folder / file) == digest for file, digest in files.items())


def _refuse_link(path: Path) -> None:
    """Where anyone may make files, a link could have us empty a folder of somebody else's."""
    if path.is_symlink():
        raise InputError(f"{path} is a link, where an export keeps its own files; remove it")


@contextmanager
def _locked(home: Path, out: Path) -> Iterator[None]:
    """`home` made, and held against other processes: the system lets go of it even when this one is killed."""
    path = home / "lock"
    while True:
        _refuse_link(home)
        home.mkdir(parents=True, exist_ok=True)
        _refuse_link(path)
        try:
            lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        except FileNotFoundError:
            continue  # whoever held it has just finished and removed it
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another export to {out} is running; wait for it, or choose another folder") from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                yield
                return
