"""Exports one bundle: read the folder, export or copy the model, check it, and move it into place once complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from safetensors.torch import save_file
from torch import nn

from cutline.core.conversation import question
from cutline.core.storage.files import storing
from cutline.errors import BundleError, CutlineError, InputError, PromptError
from cutline.models.bundle import EMBEDDINGS, MANIFEST, Bundle, Manifest, Precision, Role, write_manifest
from cutline.models.export.decoder import export_decoder
from cutline.models.export.folder import first_line
from cutline.models.export.prefixes import export_prefixes
from cutline.models.export.source import SourceModel, read_source
from cutline.models.export.vision import export_vision
from cutline.models.export.work import ExportWork, fingerprint, work_beside
from cutline.models.hub.origin import ModelOrigin
from cutline.models.pairs.pair import served_model, shared_by, target_files
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.models.vocabulary import TOKENIZER, Vocabulary

BLOCK = 1 << 24  # bytes of a weights file that are copied at a time


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """The progress of an export: `share` of step `number` of `steps` is done. Number 0 is the preparation.

    A `finished` step has a `note` about its result; a `reused` one was finished by an earlier attempt.
    """

    step: str
    number: int
    steps: int
    share: float = 0.0
    finished: bool = False
    reused: bool = False
    note: str = ""


OnShare = Callable[[float], None]  # called with the share of a step that is done
Make = Callable[[OnShare, Path], str]  # writes a step's files into the folder; returns its note


def export_bundle(
    hf: Path,
    out: Path,
    *,
    role: Role,
    precision: Precision,
    name: str,
    target: Bundle | None = None,
    origin: ModelOrigin | None = None,
    progress: Callable[[ExportProgress], None],
) -> Bundle:
    """Make the bundle `out` from the Hugging Face folder `hf`, in place of an older bundle.

    `precision` is that of a drafter's decoder, or of a target's graphs for a device; a target's own weights keep
    theirs. A drafter may have another tokenizer, chat template or image processing than its `target`: its bundle holds
    the target's then. If it has the same its context must be at least as long, so that it can read every prompt.
    `origin` says where the folder was pulled from.

    If this fails or is killed, finished steps stay beside `out`, and the same call resumes after them.

    Raises InputError if the folder, precision, target or `out` cannot be used, BundleError if an exported graph does
    not compute what torch does, StorageError if the disk is full or fails.
    """
    if role == "target" and target is not None:
        raise InputError("a target has no target of its own")
    check_out(out)
    drafts_for = target.manifest.identity if target else None

    # Taken before the folder is read, so that the next attempt notices a change made meanwhile.
    made_from = fingerprint(hf, role=role, precision=precision, target=drafts_for)
    progress(ExportProgress("reading the model", 0, 0))
    source = read_source(hf, dtype=torch.float32)
    if role == "drafter" and source.family.ungraphed is not None:
        raise InputError(
            f"{hf} {source.family.ungraphed}, of which no graph of a whole decoder is made here; "
            "export it as a target, and give it a drafter of another family"
        )
    manifest = source.manifest(name=name, role=role, precision=precision, target=drafts_for)
    if target is not None:
        source, manifest = _paired(source, manifest, target)
    manifest = structs.replace(manifest, origin=origin)
    _try_question(hf, manifest, source)
    with storing(out), work_beside(out.resolve(), made_from) as work:
        run_steps(work, _steps(source, role, precision), progress)
        manifest = write_manifest(work.folder, manifest)
        # Refuses before the move what opening the bundle would refuse.
        served_model(Bundle.open(work.folder))
        work.place(out.resolve())
    return Bundle(out, manifest)


def check_out(out: Path) -> None:
    """Check that a bundle may be made at `out`: nothing is there, or an older one. Raises InputError."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a bundle; choose another folder")


def _try_question(hf: Path, manifest: Manifest, source: SourceModel) -> None:
    """Build the prompt of a question about an image, to refuse before the export what could not be asked later."""
    try:
        vocabulary = Vocabulary.read(source.companions[TOKENIZER])
        prompts = PromptBuilder.read(manifest, vocabulary, source.companions[TEMPLATE])
        prompts.build([question("What is this?")], [manifest.family.example(0).grid])
    except (BundleError, PromptError) as error:
        raise InputError(f"{hf} cannot be asked: {error}") from None


def run_steps(work: ExportWork, steps: dict[str, Make], progress: Callable[[ExportProgress], None]) -> None:
    """Run the steps that are not finished yet."""
    for number, (name, make) in enumerate(steps.items(), start=1):
        step = ExportProgress(name, number, len(steps))

        def on_share(share: float, step: ExportProgress = step) -> None:
            progress(replace(step, share=share))

        on_share(0.0)
        note = work.step(name, partial(make, on_share))
        progress(replace(step, share=1.0, finished=True, reused=note is None, note=note or ""))


def _steps(source: SourceModel, role: Role, precision: Precision) -> dict[str, Make]:
    """The steps of an export by name, in order, without the manifest."""
    line = source.line
    steps: dict[str, Make] = {}
    if role == "target":
        files = [*source.path.glob("*.safetensors"), *source.path.glob("*.safetensors.index.json")]
        for file in (source.path / "config.json", *sorted(files)):
            steps[f"copy of {file.name}"] = partial(_copy, file)
        steps["vision tower"] = partial(_export_vision, source, line.image_cuts[1:])
        if source.family.ungraphed is not None:  # no graph is made of its decoder: a device cuts it before that
            return steps | {"companions": partial(_write_companions, source)}
        steps[f"decoder's first layers, {precision}"] = partial(_export_prefixes, source, precision)
    else:
        steps["vision tower"] = partial(_export_vision, source, ["decoder.0"])
        steps[f"decoder, {precision}"] = partial(_export_decoder, source, precision)
    steps["embeddings"] = partial(_write_embeddings, source, role)
    steps["companions"] = partial(_write_companions, source)
    return steps


def _paired(source: SourceModel, manifest: Manifest, target: Bundle) -> tuple[SourceModel, Manifest]:
    """A model and its manifest as the drafter of `target`. Raises InputError, BundleError."""
    theirs = target.manifest
    if theirs.role != "target":
        raise InputError(f"{target.path} holds a {theirs.role}; a drafter's target must be a target")
    files = {name: target.file(name).read_bytes() for name in source.companions}
    shared = shared_by(manifest, source.companions, theirs, files)
    for path, content in ((source.path, source.companions[TOKENIZER]), (target.path, files[TOKENIZER])):
        if not shared.tokens and Vocabulary.read(content).of_words:
            raise InputError(f"{path} has a WordPiece tokenizer, which its drafter, or its target, must share")
    if shared.tokens:
        source = source.resized(theirs.decoder.vocabulary)
        # A drafter predicts its target's answer, so the target's penalties apply; they are of tokens.
        manifest = structs.replace(
            manifest, decoder=source.decoder, parameters=source.parameters, penalties=theirs.penalties
        )
    if not shared.prompt:
        return replace(source, companions=source.companions | target_files(target)), manifest
    if source.decoder.context < theirs.decoder.context:
        raise InputError(
            f"{source.path} holds {source.decoder.context} tokens, its target {target.path} {theirs.decoder.context}; "
            "a drafter must hold as many"
        )
    return source, manifest


def _copy(file: Path, on_share: OnShare, folder: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as source, (folder / file.name).open("wb") as copy:
        while block := source.read(BLOCK):
            copy.write(block)
            on_share(copy.tell() / max(size, 1))
    return f"{size / 1e6:.1f} MB"


@contextmanager
def exporting(what: str) -> Iterator[None]:
    """Raises BundleError if a library fails within."""
    try:
        yield
    except (CutlineError, OSError):
        raise
    except Exception as error:  # exporters may raise anything on a model that they do not support
        raise BundleError(f"the {what} cannot be exported ({type(error).__name__}: {first_line(error)})") from error


def _export_vision(source: SourceModel, cuts: Sequence[str], on_share: OnShare, folder: Path) -> str:
    with exporting("vision tower"):
        error = export_vision(source.model, source.family, folder, cuts)
    return f"differs from torch by {error:.1e} at most"


def _export_decoder(source: SourceModel, precision: Precision, on_share: OnShare, folder: Path) -> str:
    with exporting("decoder"):
        error = export_decoder(source.model, source.family, source.decoder, folder / "decoder.onnx", precision)
    return f"logits differ from torch's by {error:.1e} of their spread"


def _export_prefixes(source: SourceModel, precision: Precision, on_share: OnShare, folder: Path) -> str:
    with exporting("decoder"):
        error = export_prefixes(source.model, source.family, source.line, source.decoder, folder, precision)
    return f"boundaries differ from torch's by {error:.1e} of their spread"


def _write_embeddings(source: SourceModel, role: Role, on_share: OnShare, folder: Path) -> str:
    family, line = source.family, source.line
    tables = {"embeddings": _looked_up(source.model.get_input_embeddings())}
    if family.layer_inputs:
        layers = line.decoder if line.deepest is None or role == "drafter" else line.deepest  # that a device may run
        given = family.parts.modules(source.model).giving[0]
        tables["layer_inputs"] = _looked_up(given)[:, : layers * family.layer_inputs]
    save_file({name: table.contiguous() for name, table in tables.items()}, folder / EMBEDDINGS)
    (folder / EMBEDDINGS).chmod(0o644)  # safetensors makes files that only their owner may read
    return f"{source.decoder.vocabulary} tokens"


def _looked_up(table: Any) -> torch.Tensor:
    """The rows that a table gives of all tokens."""
    weights: torch.Tensor = table.weight.detach()
    if type(table) is nn.Embedding:
        return weights
    with torch.inference_mode():  # it scales what it looks up
        scaled: torch.Tensor = table(torch.arange(len(weights)))
    return scaled


def _write_companions(source: SourceModel, on_share: OnShare, folder: Path) -> str:
    for name, content in source.companions.items():
        (folder / name).write_bytes(content)
    return ", ".join(source.companions)
