"""A bundle: one folder that holds a model ready to run, and a manifest that says what is in it.

The manifest lists every file with its SHA-256; `Bundle.open` checks all of them and takes no file beside them, so what
runs is what was made.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import msgspec

from cutline.core.files import sync_files, sync_folder
from cutline.errors import BundleError
from cutline.models.families import AnyFamily
from cutline.models.layerline import Count, LayerLine, Layers
from cutline.models.penalties import NO_PENALTIES, Penalties
from cutline.models.unreadable import UNREADABLE

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
SPAN_WEIGHTS = "image-spans.data"  # of all ONNX graphs that begin at the image
PREFIX_WEIGHTS = "decoder-spans.data"  # of all that begin at decoder.0
EMBEDDINGS = "embeddings.safetensors"
FORMAT = 1
_WORKERS = ("config.json", ".safetensors", ".safetensors.index.json")  # how the files end that a worker reads

Role = Literal["drafter", "target"]
Precision = Literal["fp32", "int8", "int4"]
Part = Literal["whole", "device"]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Parameters = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


class VisionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vision tower's sizes: `width` of its rows, attention `heads`."""

    width: Count
    heads: Count


class DecoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The decoder's sizes: `width` of the residual stream, attention heads, tokens of `context`, ..."""

    width: Count
    layers: Layers
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    context: Count


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a bundle holds.

    `parameters` counts the weights that a row is multiplied with in each of `line.layers`: the patch embedding at
    `image`, the last norm and the projection to the vocabulary at `head`, the table of embeddings nowhere. `files` maps
    each file's name to its SHA-256; `target` is a drafter's target's identity. `penalties` are a part of the law of
    every answer; a drafter has those of its target.
    """

    format: int
    name: str
    role: Role
    precision: Precision
    family: AnyFamily
    line: LayerLine
    parameters: tuple[Parameters, ...]
    vision: VisionSpec
    decoder: DecoderSpec
    stop_tokens: tuple[TokenId, ...]
    image_token: TokenId
    target: str | None
    files: dict[str, str]
    penalties: Penalties = NO_PENALTIES

    @property
    def identity(self) -> str:
        """The model's identity: a hash of the manifest without the calibration, which may be measured anew."""
        files = {name: digest for name, digest in self.files.items() if name != CALIBRATION}
        lasting = msgspec.structs.replace(self, files=files)
        return hashlib.sha256(msgspec.json.encode(lasting, order="deterministic")).hexdigest()


class Bundle:
    """An opened bundle: `path` of its folder and its `manifest`, every file of `part` verified."""

    def __init__(self, path: Path, manifest: Manifest, part: Part = "whole") -> None:
        self.path = path
        self.manifest = manifest
        self.part = part
        self.names = device_files(manifest) if part == "device" else frozenset(manifest.files)

    @classmethod
    def open(cls, path: Path, part: Part = "whole") -> Bundle:
        """Read the manifest and verify every file in the folder. Raises BundleError.

        With `part` "device" what only a worker reads may be absent, is not verified, and cannot be had from the bundle.
        """
        manifest = read_manifest(path)
        bundle = cls(path, manifest, part)
        for name in sorted(bundle.names):
            if sha256_of(bundle.file(name)) != manifest.files[name]:
                raise BundleError(f"{name} in {path} is not the file that the manifest names (hash differs)")
        # A library that is given the folder may look for files that were never verified.
        if unlisted := {file.name for file in path.iterdir()} - {MANIFEST, *manifest.files}:
            raise BundleError(f"{min(unlisted)} in {path} is not in the manifest; remove it")
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of this part, surely inside the folder. Raises BundleError."""
        if name not in self.names:
            raise BundleError(f"{self.path} is a {self.manifest.role} bundle without {name}")
        found = (self.path / name).resolve()
        if not found.is_relative_to(self.path.resolve()) or not found.is_file():
            if name in self.manifest.files.keys() - device_files(self.manifest):
                raise BundleError(f"{name} is missing from {self.path}, as from a device's part; copy the whole bundle")
            raise BundleError(f"{name} is missing from {self.path}; export the bundle again")
        return found


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`; no file of it is verified. Raises BundleError."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"no bundle at {path}: it has no {MANIFEST}; make one with `cutline export`") from None
    except (*UNREADABLE, OSError) as error:
        raise BundleError(f"the manifest of {path} does not read ({error}); export the bundle again") from None
    if manifest.format != FORMAT:
        raise BundleError(f"{path} has bundle format {manifest.format}, this version reads {FORMAT}; export it again")
    line, layers = manifest.line, manifest.line.layers
    if manifest.decoder.layers != line.decoder:
        raise BundleError(
            f"the manifest of {path} has {line.decoder} decoder layers in `line` and {manifest.decoder.layers} in "
            "`decoder`; export the bundle again"
        )
    if len(manifest.parameters) != len(layers):
        raise BundleError(
            f"the manifest of {path} has {len(manifest.parameters)} `parameters` for {len(layers)} layers; "
            "export the bundle again"
        )
    return manifest


def part_at(path: Path) -> Part:
    """Which part of a bundle lies at `path`: "device" where any of what only a worker reads is absent."""
    manifest = read_manifest(path)
    others = manifest.files.keys() - device_files(manifest)
    return "whole" if all((path / name).is_file() for name in others) else "device"


def copy_bundle(bundle: Bundle, out: Path) -> Bundle:
    """Copy the part that `bundle` was opened for to `out`, where nothing is yet, and verify the copy.

    The manifest goes along unchanged, and so does the identity. Raises BundleError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        draft = Path(folder) / "bundle"
        draft.mkdir()
        for name in sorted(bundle.names):
            shutil.copyfile(bundle.file(name), draft / name)
        shutil.copyfile(bundle.path / MANIFEST, draft / MANIFEST)
        manifest = Bundle.open(draft, bundle.part).manifest
        sync_files(draft)
        draft.rename(out)
        sync_folder(out.parent)
    return Bundle(out, manifest, bundle.part)


def span_file(cut: str, start: str = "image") -> str:
    """The name of the ONNX graph that runs `[start, cut)`."""
    return f"{start}-to-{cut}.onnx"


def device_files(manifest: Manifest) -> frozenset[str]:
    """The files of a bundle that a device reads: all but a target's own weights and config, which are for torch."""
    ours = (name for name in manifest.files if name == EMBEDDINGS or not name.endswith(_WORKERS))
    return frozenset(ours)


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Hash every file in the folder `path` (flat) and write the manifest last; returns it with `files` filled."""
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != MANIFEST)
    manifest = msgspec.structs.replace(manifest, files={name: sha256_of(path / name) for name in names})
    (path / MANIFEST).write_bytes(_encoded(manifest))
    return manifest


def write_calibration(bundle: Bundle, calibration: msgspec.Struct) -> None:
    """Put `calibration` into an opened bundle, in place of one that is there; nothing else changes, as it was verified.

    Both files are whole before they take their places, so an interruption while they are written leaves what was there.
    """
    content = _encoded(calibration)
    files = bundle.manifest.files | {CALIBRATION: hashlib.sha256(content).hexdigest()}
    manifest = msgspec.structs.replace(bundle.manifest, files=dict(sorted(files.items())))
    with TemporaryDirectory(dir=bundle.path, prefix=".") as folder:
        draft = Path(folder)
        (draft / CALIBRATION).write_bytes(content)
        (draft / MANIFEST).write_bytes(_encoded(manifest))
        (draft / CALIBRATION).replace(bundle.path / CALIBRATION)
        (draft / MANIFEST).replace(bundle.path / MANIFEST)


def _encoded(struct: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(struct), indent=2) + b"\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as manifests hold it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
