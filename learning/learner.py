"""A drafter learns from a journal: taught, exported, compared with the old one, and put in place where it is better.

What is under way lies beside the new bundle in `.NAME.learning`, and the same call goes on with it after a stop:

    work.jsonl    locked by the process that works; what the work is of
    additions     what was learnt so far, see `distillation.py`
    folder/       the Hugging Face folder of what came of it
    bundle/       the bundle of that, until it is compared
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from cutline.core.escalations.learnt import LearntRecord, note_learnt
from cutline.core.storage.envelope import SealingKey
from cutline.core.storage.files import storing, sync_folder
from cutline.core.storage.journal import open_journal
from cutline.errors import InputError, ModelMismatch, NotBetter
from cutline.learning.comparison import LEAST, Comparison, Quality, quality_of
from cutline.learning.distillation import Distillation, DistillationPlan
from cutline.learning.examples import Example, JournalExamples, Remembered, memory_of, read_examples
from cutline.models.bundle import Bundle, set_origin
from cutline.models.export import export_bundle
from cutline.models.export.make import ExportProgress
from cutline.models.export.quiet import quiet
from cutline.models.export.source import SourceModel, read_source
from cutline.models.export.work import fingerprint
from cutline.models.hub.origin import Learnt, ModelOrigin
from cutline.models.pairs.pair import served_model

PLAN = DistillationPlan()
_WORK = "work.jsonl"
_UNTIL, _EXAMPLES = "until", "examples"  # its keys


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSource:
    """The journal to learn from: its folder, the key that seals it, and one `tenant`, or all."""

    folder: Path
    key: SealingKey | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningProgress:
    """How far a part of the work is: `done` of `total`."""

    part: str
    done: int
    total: int
    note: str = ""


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of learning: the new `bundle`, how it compares, and what of the journal went into it.

    Of the journal's entries `learnt` were learnt from, `torn` could not be read, `others` are another target's, and
    `unfit` do not fit the drafter.
    """

    bundle: str
    identity: str
    comparison: Comparison
    learnt: int
    tenants: tuple[str, ...]
    torn: int
    others: int
    unfit: int


class Learner:
    """Makes a better drafter of `drafter`, which was exported from the Hugging Face `folder` for `target`.

    `memory` are questions that it is not to forget the answers to. Raises InputError for a folder of another drafter,
    ModelMismatch for another target.
    """

    def __init__(
        self,
        drafter: Bundle,
        target: Bundle,
        folder: Path,
        *,
        memory: Sequence[Remembered] = (),
        plan: DistillationPlan = PLAN,
        threads: int = 1,
        tell: Callable[[LearningProgress | ExportProgress], None] = lambda progress: None,
    ) -> None:
        shared = served_model(drafter).shared
        if not shared.prompt:
            raise InputError(f"{drafter.path} cannot learn so: {shared.told}; give a drafter that reads those prompts")
        if drafter.manifest.target != target.manifest.identity:
            raise ModelMismatch(
                f"{drafter.path} drafts for another target than {target.path}; give its own as --target"
            )
        self._drafter, self._target, self._folder = drafter, target, folder
        self._memory, self._plan, self._threads, self._tell = memory, plan, threads, tell

    def learn(self, journal: JournalSource, out: Path) -> Learned:
        """Learn from a journal, and make the bundle `out`.

        Raises NotBetter if the new one is not better, having left nothing; and InputError, BundleError, StorageError.
        """
        if out.exists():
            raise InputError(f"{out} is there already; choose another folder for the new drafter")
        work = out.with_name(f".{out.name}.learning")
        with storing(work):
            work.mkdir(parents=True, exist_ok=True)
        inputs = fingerprint(
            self._folder,
            drafter=self._drafter.manifest.identity,
            journal=str(journal.folder.resolve()),
            tenant=journal.tenant,
            plan=f"{self._plan}, {len(self._memory)} remembered",
        )
        with open_journal(work / _WORK, inputs=inputs) as done:
            if (until := done.get(_UNTIL)) is None:  # what comes later is for the next time
                done.put(_UNTIL, until_now := time.time())
            else:
                until_now = msgspec.json.decode(until, type=float)
            found = self._found(journal, until_now, work)
            memory = self._remembered()
            examples = _digest_of((*found.examples, *memory))
            if done.get(_EXAMPLES) != msgspec.json.encode(examples):  # what was learnt of others, or of deleted ones
                _clear(work)
                done.put(_EXAMPLES, examples)
            self._teach(found.learnt, [one for one in memory if not one.held_out], work, inputs)
            made = self._exported(work)
            comparison = self._compared(made, found.held_out, [one for one in memory if one.held_out])
            if (why := comparison.refusal) is not None:
                shutil.rmtree(work)
                raise NotBetter(f"the new drafter is not better: {why}; the old one stays")
            self._place(made, found, journal.folder, out)
        shutil.rmtree(work, ignore_errors=True)
        return Learned(
            bundle=str(out),
            identity=made.manifest.identity,
            comparison=comparison,
            learnt=len(found.learnt),
            tenants=tuple(sorted(found.tenants)),
            torn=found.torn,
            others=found.others,
            unfit=found.unfit,
        )

    def _found(self, journal: JournalSource, until: float, work: Path) -> JournalExamples:
        """What there is to learn. Raises InputError where that is too little; what was learnt before stays."""
        manifest = self._drafter.manifest
        try:
            found = read_examples(journal.folder, journal.key, manifest, tenant=journal.tenant, until=until)
            if (count := len(found.held_out)) < LEAST:
                raise InputError(f"{count} answers to compare by are too few; keep more: {LEAST} are needed")
        except InputError:
            if not (work / "additions").exists():
                shutil.rmtree(work)
            raise
        return found

    def _remembered(self) -> list[Example]:
        memory = list[Example]()
        for example in memory_of(self._drafter, self._memory, threads=self._threads):
            memory.append(example)
            self._tell(LearningProgress(part="remembering", done=len(memory), total=len(self._memory)))
        return memory

    def _teach(self, examples: Sequence[Example], memory: Sequence[Example], work: Path, inputs: str) -> None:
        """Make the Hugging Face folder of what the drafter becomes, unless an earlier attempt has."""
        folder = work / "folder"
        if folder.is_dir():
            return
        source = read_source(self._folder, dtype=torch.float32)
        self._check(source)
        total = self._plan.steps(len(examples))

        def told(done: int, loss: float) -> None:
            self._tell(LearningProgress(part="learning", done=done, total=total, note=f"loss {loss:.3f}"))

        learning = Distillation(source.model, self._drafter.manifest, self._plan, state=work / "additions", work=inputs)
        model = learning.run(examples, memory, told=told)
        draft = work / "folder.draft"
        shutil.rmtree(draft, ignore_errors=True)
        with storing(draft):
            with quiet():
                model.save_pretrained(draft)
            for file in self._folder.iterdir():
                if file.is_file() and not (draft / file.name).exists() and not file.name.endswith(_WEIGHTS):
                    shutil.copyfile(file, draft / file.name)
            draft.rename(folder)
            sync_folder(work)

    def _check(self, source: SourceModel) -> None:
        """Raises InputError unless the folder is that of the drafter."""
        ours = self._drafter.manifest
        made = source.resized(ours.decoder.vocabulary)
        if (made.family, made.line, made.vision, made.decoder) != (ours.family, ours.line, ours.vision, ours.decoder):
            raise InputError(
                f"{self._folder} holds a model of another shape than {self._drafter.path}; give the folder that the "
                "drafter was exported from"
            )

    def _exported(self, work: Path) -> Bundle:
        ours = self._drafter.manifest
        return export_bundle(
            work / "folder",
            work / "bundle",
            role="drafter",
            precision=ours.precision,
            name=ours.name,
            target=self._target,
            progress=self._tell,
        )

    def _compared(self, made: Bundle, held_out: Sequence[Example], memory: Sequence[Example]) -> Comparison:
        asked, done = 2 * (len(held_out) + len(memory)), 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._tell(LearningProgress(part="comparing", done=done, total=asked))

        def of(drafter: Bundle, examples: Sequence[Example]) -> Quality:
            return quality_of(drafter, examples, threads=self._threads, advance=advance)

        return Comparison(
            before=of(self._drafter, held_out),
            after=of(made, held_out),
            memory_before=of(self._drafter, memory) if memory else None,
            memory_after=of(made, memory) if memory else None,
        )

    def _place(self, made: Bundle, found: JournalExamples, journal: Path, out: Path) -> None:
        """Say in the bundle what it has learnt, and move it into place."""
        before = self._drafter.manifest
        earlier = before.origin or ModelOrigin()
        tenants = found.tenants.union(() if earlier.learnt is None else earlier.learnt.tenants)
        learnt = Learnt(drafter=before.identity, answers=len(found.learnt), tenants=tuple(sorted(tenants)))
        set_origin(made, msgspec.structs.replace(earlier, learnt=learnt))
        record = LearntRecord(bundle=str(out.resolve()), identity=made.manifest.identity, tenants=learnt.tenants)
        note_learnt(journal, record)
        with storing(out):
            made.path.rename(out)
            sync_folder(out.resolve().parent)


def _digest_of(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(msgspec.msgpack.encode(example))
    return digest.hexdigest()


def _clear(work: Path) -> None:
    """Remove what an earlier attempt made."""
    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != _WORK:
            left.unlink()


_WEIGHTS = (".safetensors", ".safetensors.index.json")
