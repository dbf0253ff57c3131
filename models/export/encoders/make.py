"""Exports one encoder's bundle: reads the folder, exports and checks both towers, and moves it into place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import structs

from cutline.core.storage.files import storing
from cutline.errors import InputError
from cutline.models.bundle import Precision, write_manifest
from cutline.models.encoders.bundle import EncoderBundle, EncoderManifest
from cutline.models.encoders.tokenizer import TOKENIZER
from cutline.models.export.encoders.source import EncoderSource, read_encoder
from cutline.models.export.encoders.towers import export_image_tower, export_text_tower
from cutline.models.export.make import ExportProgress, Make, OnShare, check_out, exporting, run_steps
from cutline.models.export.work import fingerprint, work_beside
from cutline.models.hub.origin import ModelOrigin


def export_encoder(
    hf: Path,
    out: Path,
    *,
    precision: Precision,
    name: str,
    origin: ModelOrigin | None = None,
    progress: Callable[[ExportProgress], None],
) -> EncoderBundle:
    """Make the encoder's bundle `out` from the Hugging Face folder `hf`, in place of an older bundle.

    `precision` is that of both towers' products: fp32 or int8. `origin` says where the folder was pulled from. If this
    fails or is killed, finished steps stay beside `out`, and the same call resumes after them.

    Raises InputError if the folder, precision or `out` cannot be used, BundleError if an exported graph does not
    compute what torch does, StorageError if the disk is full or fails.
    """
    if precision == "int4":
        raise InputError("an encoder's precision is fp32 or int8; int4 was not measured to be good")
    check_out(out)
    made_from = fingerprint(hf, role="encoder", precision=precision)
    progress(ExportProgress("reading the model", 0, 0))
    source = read_encoder(hf)
    manifest = structs.replace(source.manifest(name=name, precision=precision), origin=origin)
    with storing(out), work_beside(out.resolve(), made_from) as work:
        run_steps(work, _steps(source, manifest), progress)
        manifest = write_manifest(work.folder, manifest)
        EncoderBundle.open(work.folder)  # refuses before the move what opening the bundle would refuse
        work.place(out.resolve())
    return EncoderBundle(out, manifest)


def _steps(source: EncoderSource, manifest: EncoderManifest) -> dict[str, Make]:
    """The steps of an export by name, in order, without the manifest."""
    return {
        f"image tower, {manifest.precision}": partial(_images, source, manifest),
        f"text tower, {manifest.precision}": partial(_texts, source, manifest),
        "tokenizer": partial(_tokenizer, source),
    }


def _images(source: EncoderSource, manifest: EncoderManifest, on_share: OnShare, folder: Path) -> str:
    with exporting("image tower"):
        error = export_image_tower(source.model, folder, manifest.line, manifest.precision)
    return f"differs from torch by {error:.1e} at most, uncut and at {len(manifest.cuts)} cuts"


def _texts(source: EncoderSource, manifest: EncoderManifest, on_share: OnShare, folder: Path) -> str:
    with exporting("text tower"):
        error = export_text_tower(source.model, folder, manifest.texts, manifest.precision)
    return f"differs from torch by {error:.1e} at most"


def _tokenizer(source: EncoderSource, on_share: OnShare, folder: Path) -> str:
    (folder / TOKENIZER).write_bytes(source.tokenizer)
    return f"{len(source.tokenizer)} bytes"
