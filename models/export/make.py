"""Making one bundle: read the folder, export or copy the model, check it, and move it into place when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from msgspec import structs
from safetensors.torch import save_file

from cutline.core.conversation import question
from cutline.core.files import storing
from cutline.errors import BundleError, CutlineError, InputError, PromptError
from cutline.models.bundle import EMBEDDINGS, MANIFEST, Bundle, Manifest, Precision, Role, write_manifest
from cutline.models.export.decoder import export_decoder
from cutline.models.export.folder import first_line
from cutline.models.export.prefixes import export_prefixes
from cutline.models.export.source import SourceModel, read_source
from cutline.models.export.vision import export_vision
from cutline.models.export.work import ExportWork, fingerprint, work_beside
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.models.vocabulary import TOKENIZER, Vocabulary

BLOCK = 1 << 24  # bytes of a weights file that are copied at a time


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """How far an export is: `share` of its step `number` of `steps` is done; number 0 comes before them.

    A step that is `finished` has a `note` of how it went; one that is `reused` was finished by an earlier attempt.
    """

    step: str
    number: int
    steps: int
    share: float = 0.0
    finished: bool = False
    reused: bool = False
    note: str = ""


Tell = Callable[[float], None]  # the share of a step that is done
Make = Callable[[Tell, Path], str]  # writes a step's files into the folder; returns its note


def export_bundle(
    hf: Path,
    out: Path,
    *,
    role: Role,
    precision: Precision,
    name: str,
    target: Bundle | None = None,
    progress: Callable[[ExportProgress], None],
) -> Bundle:
    """Make the bundle `out` from the Hugging Face folder `hf`, replacing a bundle that is there.

    A target keeps its weights as they are: `precision` is that of the graphs in which a device runs its first decoder
    layers, as it is that of a drafter's decoder. A drafter and its `target` must have the same tokenizer, chat
    template, image processing, image token and stop tokens; its context may be longer but not shorter, so that it reads
    all that its target can answer.

    When it fails or is killed, the steps that are finished stay beside `out`, and the same call goes on from there.

    Raises InputError when the folder, precision, target or `out` cannot be used, BundleError when what was exported
    does not compute what torch does, StorageError where there is no room.
    """
    if role == "target" and target is not None:
        raise InputError("a target has no target of its own")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a bundle; choose another folder")
    drafts_for = target.manifest.identity if target else None

    # Before the folder is read: what changes in it later is then found out by the next attempt.
    made_from = fingerprint(hf, role=role, precision=precision, target=drafts_for)
    progress(ExportProgress("reading the model", 0, 0))
    source = read_source(hf, dtype=torch.float32)
    manifest = source.manifest(name=name, role=role, precision=precision, target=drafts_for)
    if target is not None:
        _check_target(source, target)
        # What is drafted is the target's answer, whatever another model takes from its own.
        manifest = structs.replace(manifest, penalties=target.manifest.penalties)
    _try_question(hf, manifest, source)
    with storing(out), work_beside(out.resolve(), made_from) as work:
        _make(work, _steps(source, role, precision), progress)
        manifest = write_manifest(work.folder, manifest)
        # Whatever opening it would refuse is refused here, before it takes its place.
        PromptBuilder.open(Bundle.open(work.folder))
        work.place(out.resolve())
    return Bundle(out, manifest)


def _try_question(hf: Path, manifest: Manifest, source: SourceModel) -> None:
    """Ask about an image, as far as a prompt: before anything is exported, as whoever opens the bundle will."""
    try:
        vocabulary = Vocabulary.read(source.companions[TOKENIZER])
        prompts = PromptBuilder.read(manifest, vocabulary, source.companions[TEMPLATE])
        prompts.build([question("What is this?")], [manifest.family.example(0).grid])
    except (BundleError, PromptError) as error:
        raise InputError(f"{hf} cannot be asked: {error}") from None


def _make(work: ExportWork, steps: dict[str, Make], progress: Callable[[ExportProgress], None]) -> None:
    """Take every step that is not finished yet."""
    for number, (name, make) in enumerate(steps.items(), start=1):
        step = ExportProgress(name, number, len(steps))

        def tell(share: float, step: ExportProgress = step) -> None:
            progress(replace(step, share=share))

        tell(0.0)
        note = work.step(name, partial(make, tell))
        progress(replace(step, share=1.0, finished=True, reused=note is None, note=note or ""))


def _steps(source: SourceModel, role: Role, precision: Precision) -> dict[str, Make]:
    """What a bundle is made of, the manifest left out: its steps by name, in order."""
    line = source.line
    steps: dict[str, Make] = {}
    if role == "target":
        files = [*source.path.glob("*.safetensors"), *source.path.glob("*.safetensors.index.json")]
        for file in (source.path / "config.json", *sorted(files)):
            steps[f"copy of {file.name}"] = partial(_copy, file)
        steps["vision tower"] = partial(_export_vision, source, line.image_cuts[1:])
        steps[f"decoder's first layers, {precision}"] = partial(_export_prefixes, source, precision)
    else:
        steps["vision tower"] = partial(_export_vision, source, ["decoder.0"])
        steps[f"decoder, {precision}"] = partial(_export_decoder, source, precision)
    steps["embeddings"] = partial(_write_embeddings, source)
    steps["companions"] = partial(_write_companions, source)
    return steps


def _check_target(source: SourceModel, target: Bundle) -> None:
    theirs = target.manifest
    if theirs.role != "target":
        raise InputError(f"{target.path} holds a {theirs.role}; a drafter's target must be a target")
    alike = {
        **{name: target.file(name).read_bytes() == content for name, content in source.companions.items()},
        "image processing": source.family == theirs.family,
        "image token": source.image_token == theirs.image_token,
        "set of stop tokens": source.stop_tokens == theirs.stop_tokens,
    }
    for what, same in alike.items():
        if not same:
            raise InputError(
                f"the {what} of {source.path} is not that of its target {target.path}; they must be the same"
            )
    if source.decoder.context < theirs.decoder.context:
        raise InputError(
            f"{source.path} holds {source.decoder.context} tokens, its target {target.path} {theirs.decoder.context}; "
            "a drafter must hold as many"
        )


def _copy(file: Path, tell: Tell, folder: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as source, (folder / file.name).open("wb") as copy:
        while block := source.read(BLOCK):
            copy.write(block)
            tell(copy.tell() / max(size, 1))
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Raises BundleError where a library fails at it."""
    try:
        yield
    except (CutlineError, OSError):
        raise
    except Exception as error:  # the exporters raise whatever a model that they were not made for leads to
        raise BundleError(f"the {what} cannot be exported ({type(error).__name__}: {first_line(error)})") from error


def _export_vision(source: SourceModel, cuts: Sequence[str], tell: Tell, folder: Path) -> str:
    with _exporting("vision tower"):
        error = export_vision(source.model, source.family, folder, cuts)
    return f"differs from torch by {error:.1e} at most"


def _export_decoder(source: SourceModel, precision: Precision, tell: Tell, folder: Path) -> str:
    with _exporting("decoder"):
        error = export_decoder(source.model, source.family, source.decoder, folder / "decoder.onnx", precision)
    return f"logits differ from torch's by {error:.1e} of their spread"


def _export_prefixes(source: SourceModel, precision: Precision, tell: Tell, folder: Path) -> str:
    with _exporting("decoder"):
        error = export_prefixes(source.model, source.family, source.line, source.decoder, folder, precision)
    return f"boundaries differ from torch's by {error:.1e} of their spread"


def _write_embeddings(source: SourceModel, tell: Tell, folder: Path) -> str:
    weights = source.model.get_input_embeddings().weight.detach()
    save_file({"embeddings": weights.contiguous()}, folder / EMBEDDINGS)
    (folder / EMBEDDINGS).chmod(0o644)  # as any other file; safetensors makes it for its owner alone
    return f"{len(weights)} tokens"


def _write_companions(source: SourceModel, tell: Tell, folder: Path) -> str:
    for name, content in source.companions.items():
        (folder / name).write_bytes(content)
    return ", ".join(source.companions)
