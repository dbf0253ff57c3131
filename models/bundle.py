"""A bundle: one folder that holds a model ready to run, and a manifest that says what is in it.

The manifest lists every file with its SHA-256; `Bundle.open` checks all of them and takes no file beside them, so what
runs is what was made.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import msgspec

from cutline.errors import BundleError
from cutline.models.layerline import Count, LayerLine

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
SPAN_WEIGHTS = "image-spans.data"  # of all ONNX graphs that begin at the image
FORMAT = 1

Role = Literal["drafter", "target"]
Precision = Literal["fp32", "int8", "int4"]
Spread = Annotated[float, msgspec.Meta(gt=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0)]


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image becomes pixels: tiles of `tile` x `tile`, `tokens` image tokens each.

    `longest_edge` is the size an image is first resized to; `split` says whether it is then cut into tiles.
    """

    tile: Count
    tokens: Count
    longest_edge: Count
    split: bool
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)


class DecoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The decoder's sizes: `width` of the residual stream, key-value heads, tokens of `context`, ..."""

    width: Count
    layers: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    context: Count


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle holds. `files` maps each file's name to its SHA-256; `target` is a drafter's target's identity."""

    format: int
    name: str
    role: Role
    family: str
    precision: Precision
    line: LayerLine
    image: ImageSpec
    decoder: DecoderSpec
    stop_tokens: tuple[TokenId, ...]
    image_token: TokenId
    target: str | None
    files: dict[str, str]

    @property
    def identity(self) -> str:
        """The model's identity: a hash of the manifest without the calibration, which may be measured anew."""
        files = {name: digest for name, digest in self.files.items() if name != CALIBRATION}
        lasting = msgspec.structs.replace(self, files=files)
        return hashlib.sha256(msgspec.json.encode(lasting, order="deterministic")).hexdigest()


class Bundle:
    """An opened bundle: `path` of its folder and its `manifest`, every file verified."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read the manifest and verify every file in the folder. Raises BundleError."""
        try:
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise BundleError(f"no bundle at {path}: it has no {MANIFEST}; make one with `cutline export`") from None
        except (msgspec.MsgspecError, OSError) as error:
            raise BundleError(f"the manifest of {path} does not read ({error}); export the bundle again") from None
        if manifest.format != FORMAT:
            raise BundleError(
                f"{path} has bundle format {manifest.format}, this version reads {FORMAT}; export it again"
            )
        bundle = cls(path, manifest)
        for name, digest in manifest.files.items():
            if _sha256(bundle.file(name)) != digest:
                raise BundleError(f"{name} in {path} is not the file that the manifest names (hash differs)")
        # A library that is given the folder may look for files that were never verified.
        if unlisted := {file.name for file in path.iterdir()} - {MANIFEST, *manifest.files}:
            raise BundleError(f"{min(unlisted)} in {path} is not in the manifest; remove it")
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists, surely inside the folder. Raises BundleError."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} is a {self.manifest.role} bundle without {name}")
        found = (self.path / name).resolve()
        if not found.is_relative_to(self.path.resolve()) or not found.is_file():
            raise BundleError(f"{name} is missing from {self.path}; export the bundle again")
        return found


def span_file(cut: str) -> str:
    """The name of the ONNX graph that runs `[image, cut)`."""
    return f"image-to-{cut}.onnx"


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Hash every file in the folder `path` (flat) and write the manifest last; returns it with `files` filled."""
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name != MANIFEST)
    manifest = msgspec.structs.replace(manifest, files={name: _sha256(path / name) for name in names})
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
