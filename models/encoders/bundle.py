"""An encoder's bundle: a folder like any other bundle's, with a manifest of its own.

image-to-end.onnx           pixels (1, 3, side, side) -> features (1, dimensions) float32, not of unit length
image-to-CUT.onnx           pixels -> rows (1, n, width), for every cut after `image`
CUT-to-end.onnx             those rows -> features
text.onnx                   ids (1, n) int64 -> features
image-spans.data, text.data the weights of the graphs of each tower
tokenizer.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.seal import unseal
from cutline.errors import BundleError
from cutline.models.bundle import (
    FORMAT,
    Precision,
    check_files,
    copy_files,
    file_inside,
    manifest_at,
    replace_calibration,
    span_file,
)
from cutline.models.encoders.images import ImageRules
from cutline.models.encoders.scores import ScoreRules
from cutline.models.encoders.tokenizer import TextRules
from cutline.models.hub.origin import Digest, ModelOrigin
from cutline.models.layerline import Count, Layers

TEXT_GRAPH, TEXT_WEIGHTS = "text.onnx", "text.data"


class _Head(msgspec.Struct):
    """The part of a manifest that tells how to read the rest."""

    format: int
    role: str


class EncoderManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The description of an encoder's bundle.

    The image tower has so many `layers` of rows of `width`; before its head an image is `patches` rows. Both towers
    give rows of so many `dimensions`. `files`, `identity` and `origin` are as in every bundle's manifest; the
    calibration says from which score on a text is said of an image.
    """

    format: int
    identity: Digest = ""
    name: str
    role: Literal["encoder"]
    precision: Precision
    family: Literal["clip", "siglip"]
    layers: Layers
    width: Count
    patches: Count
    dimensions: Count
    images: ImageRules
    texts: TextRules
    scores: ScoreRules
    files: dict[str, str]
    calibration: dict[str, Any] | None = None
    origin: ModelOrigin | None = None

    @property
    def line(self) -> tuple[str, ...]:
        """The layers of the image tower, in order; a cut is before one of them."""
        return ("image", *(f"vision.{index}" for index in range(self.layers)), "head")

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts before which a device runs something."""
        return self.line[1:]


class EncoderBundle:
    """An opened encoder's bundle: the `path` of its folder, and its `manifest`. Every file is verified."""

    def __init__(self, path: Path, manifest: EncoderManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> EncoderBundle:
        """Read the manifest and verify every file in the folder. Raises BundleError."""
        bundle = cls(Path(path), read_encoder_manifest(Path(path)))
        check_files(bundle.path, bundle.manifest.files, bundle.manifest.files, bundle.file)
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file, checked to be inside the folder. Raises BundleError."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} is an encoder's bundle without {name}")
        if (found := file_inside(self.path, name)) is None:
            raise BundleError(f"{name} is missing from {self.path}; export the bundle again")
        return found

    def span(self, first: str, end: str) -> Path:
        """The graph that runs `[first, end)` of the image tower. Raises BundleError."""
        return self.file(span_file(end, first))

    def copy(self, out: Path) -> EncoderBundle:
        """Copy it to `out`, which must not exist. Raises BundleError, and OSError if the copy cannot be written."""
        files = [self.file(name) for name in sorted(self.manifest.files)]
        copy_files(files, self.manifest, out, EncoderBundle.open)
        return EncoderBundle(out, self.manifest)

    def with_calibration(self, calibration: dict[str, Any]) -> EncoderBundle:
        """Write `calibration` into the manifest, in place of an older one; gives the bundle with it.

        Raises InputError if the bundle cannot be written, StorageError if the disk is full or fails.
        """
        manifest = msgspec.structs.replace(self.manifest, calibration=calibration)
        replace_calibration(self.path, manifest)
        return EncoderBundle(self.path, manifest)


def is_encoder(path: Path) -> bool:
    """Whether the bundle at `path` is an encoder's; a broken one is none. Raises BundleError if there is no bundle."""
    try:
        return msgspec.json.decode(unseal(manifest_at(path)), type=_Head).role == "encoder"
    except (*UNREADABLE, ValueError):
        return False


def read_encoder_manifest(path: Path) -> EncoderManifest:
    """The manifest of the encoder's bundle at `path`, without verifying the files it lists. Raises BundleError."""
    content = manifest_at(path)
    try:
        document = unseal(content)
        head = msgspec.json.decode(document, type=_Head)
        if head.role != "encoder":
            raise BundleError(f"{path} holds a {head.role}; `cutline export --role encoder` makes an encoder's bundle")
        if head.format != FORMAT:
            raise BundleError(f"{path} has bundle format {head.format}, this version reads {FORMAT}; export it again")
        manifest = msgspec.json.decode(document, type=EncoderManifest)
        if not manifest.identity:
            raise ValueError("it has no identity")
    except (*UNREADABLE, ValueError) as error:
        raise BundleError(f"the manifest of {path} does not read ({error}); export the bundle again") from None
    return manifest
