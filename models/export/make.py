"""Making one bundle: read the folder, export or copy the model, check it, and move it into place when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from cutline.errors import InputError
from cutline.models.bundle import FORMAT, MANIFEST, Bundle, Manifest, Precision, Role, write_manifest
from cutline.models.export.decoder import export_decoder
from cutline.models.export.source import Source, read_source
from cutline.models.export.vision import export_vision


def export_bundle(
    hf: Path,
    out: Path,
    *,
    role: Role,
    precision: Precision,
    name: str,
    target: Bundle | None = None,
    progress: Callable[[str], None],
) -> Bundle:
    """Make the bundle `out` from the Hugging Face folder `hf`, replacing a bundle that is there.

    A target keeps its weights as they are (precision "fp32": torch runs them); a drafter's decoder is quantized to
    `precision`. A drafter and its `target` must have the same tokenizer, chat template, image processing, image token
    and stop tokens; its context may be longer but not shorter, so that it reads all that its target can answer.
    `progress` hears each step in a few words.

    Raises InputError when the folder, precision, target or `out` cannot be used, BundleError when what was exported
    does not compute what torch does.
    """
    if role == "target" and precision != "fp32":
        raise InputError(f"a target keeps its own weights: export it with precision fp32, not {precision}")
    if role == "target" and target is not None:
        raise InputError("a target has no target of its own")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a bundle; choose another folder")

    progress(f"reading {hf}")
    source = read_source(hf, dtype=None if role == "target" else torch.float32)
    if target is not None:
        _check_target(source, target)

    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")  # beside it, so that the move is one rename
    draft.mkdir()
    try:
        if role == "target":
            _copy_model(source, draft, progress)
            _export_spans(source, draft, source.line.image_cuts[1:], progress)
        else:
            _export_spans(source, draft, ["decoder.0"], progress)
            _export_decoder(source, draft, precision, progress)
        for companion, content in source.companions.items():
            (draft / companion).write_bytes(content)
        progress("manifest: hashing every file")
        manifest = Manifest(
            format=FORMAT,
            name=name,
            role=role,
            family=source.family,
            precision=precision,
            line=source.line,
            image=source.image,
            decoder=source.decoder,
            stop_tokens=source.stop_tokens,
            image_token=source.image_token,
            target=target.manifest.identity if target else None,
            files={},
        )
        write_manifest(draft, manifest)
        manifest = Bundle.open(draft).manifest
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Bundle(out, manifest)


def _check_target(source: Source, target: Bundle) -> None:
    theirs = target.manifest
    if theirs.role != "target":
        raise InputError(f"{target.path} holds a {theirs.role}; a drafter's target must be a target")
    alike = {
        **{name: target.file(name).read_bytes() == content for name, content in source.companions.items()},
        "image processing": source.image == theirs.image,
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


def _copy_model(source: Source, folder: Path, progress: Callable[[str], None]) -> None:
    progress("weights: copying")
    files = [*source.path.glob("*.safetensors"), *source.path.glob("*.safetensors.index.json")]
    for file in (source.path / "config.json", *files):
        shutil.copyfile(file, folder / file.name)


def _export_spans(source: Source, folder: Path, cuts: Sequence[str], progress: Callable[[str], None]) -> None:
    progress("vision: exporting the tower and comparing it with torch")
    error = export_vision(source.model.float(), source.image, folder, cuts)
    progress(f"vision: largest difference from torch {error:.1e}")


def _export_decoder(source: Source, folder: Path, precision: Precision, progress: Callable[[str], None]) -> None:
    progress(f"decoder: exporting as {precision} and comparing it with torch")
    error = export_decoder(source.model, source.decoder, folder / "decoder.onnx", precision)
    progress(f"decoder: logits differ from torch's by {error:.1e} of their spread")
    embeddings = source.model.get_input_embeddings().weight.detach()
    (folder / "embeddings.safetensors").write_bytes(save({"embeddings": embeddings.contiguous()}))
