"""A bundle: one folder with a model ready to run, and a manifest that describes it.

The manifest lists every file with its SHA-256, and holds a digest of itself. `Bundle.open` verifies all of them and
refuses a folder with other files, so what runs is what was exported.

The manifest of format 1 had neither digest nor identity, and its calibration was in a file. Such bundles still open,
and are converted when their manifest is next written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import (
    is_draft,
    open_regular,
    read_regular,
    replace_file,
    storing,
    sync_files,
    sync_folder,
)
from cutline.core.storage.seal import is_sealed, seal, unseal
from cutline.core.wire import Wire
from cutline.errors import BundleError
from cutline.models.families import DecodedFamily, Family, UnknownFamily, family_from
from cutline.models.families.layer_state import KeysValues, LayerState, key_inputs
from cutline.models.hub.origin import Digest, ModelOrigin
from cutline.models.law.penalties import NO_PENALTIES, Penalties
from cutline.models.layerline import Count, LayerLine, Layers

MANIFEST = "manifest.json"
SPAN_WEIGHTS = "image-spans.data"  # weights of the ONNX graphs that begin at the image
PREFIX_WEIGHTS = "decoder-spans.data"  # weights of those that begin at decoder.0
EMBEDDINGS = "embeddings.safetensors"
FORMAT = 2
MAX_MANIFEST = 1 << 24  # bytes
_FIRST_FORMAT = 1
JOURNAL = ".calibration.jsonl"  # of an unfinished calibration; not part of the bundle
_FIRST_CALIBRATION = "calibration.json"  # the calibration's file in the first format
_WORKER_SUFFIXES = ("config.json", ".safetensors", ".safetensors.index.json")  # of the files that only a worker reads

Role = Literal["drafter", "target"]
Precision = Literal["fp32", "int8", "int4"]
Part = Literal["whole", "device"]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Parameters = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
# With the fields format, identity, files, calibration and origin.
AnyManifest = TypeVar("AnyManifest", bound=msgspec.Struct)


class _Head(msgspec.Struct):
    """The part of a manifest that tells how to read the rest."""

    format: int
    role: str = ""


class VisionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vision tower's sizes: the `width` of its rows and its attention `heads`."""

    width: Count
    heads: Count


class DecoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The decoder's sizes: `width` is that of the residual stream, `context` the most tokens it holds."""

    width: Count
    layers: Layers
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    context: Count

    def rows_width(self, family: Family) -> int:
        """How wide rows are that enter a graph of the decoder: all streams, and what layers are given of a token."""
        return self.width * (1 + len(family.taps)) + self.layers * family.layer_inputs

    def key_shapes(self, keeps: Sequence[LayerState], positions: int) -> dict[str, tuple[int, int, int, int]]:
        """The shapes of a graph's keys and values of so many positions by its inputs, where layers keep so much."""
        found: dict[str, tuple[int, int, int, int]] = {}
        for layer, kept in enumerate(keeps):
            if isinstance(kept, KeysValues):
                heads, width = kept.sizes(self.kv_heads, self.head_dim)
                found |= dict.fromkeys(key_inputs(layer), (1, heads, positions, width))
        return found


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The description of a bundle.

    `parameters` counts the weights that a row is multiplied with in each of `line.layers`: the patch embedding at
    `image`, the last norm and the projection to the vocabulary at `head`; the table of embeddings counts nowhere.
    `files` maps each file's name to its SHA-256. `target` is the identity of a drafter's target. `penalties` are part
    of the law of every answer; a drafter has those of its target.

    `identity` identifies the model: a hash of all other fields but `calibration` and `origin`, computed when the bundle
    is made. The calibration is a drafter's gate or a target's prices, and may be measured again. The origin is None for
    weights that were neither pulled by name nor learnt: the same weights are the same model wherever they are from.
    """

    format: int
    identity: Digest = ""
    name: str
    role: Role
    precision: Precision
    family: DecodedFamily
    line: LayerLine
    parameters: tuple[Parameters, ...]
    vision: VisionSpec
    decoder: DecoderSpec
    stop_tokens: tuple[TokenId, ...]
    image_token: TokenId
    target: str | None
    files: dict[str, str]
    penalties: Penalties = NO_PENALTIES
    calibration: dict[str, Any] | None = None
    origin: ModelOrigin | None = None

    def is_exact_at(self, cut: str | None, wire: Wire | None) -> bool:
        """Whether what crosses `cut` in a format is what the unsplit target has there.

        That is float32, and of the target's own weights: those of the decoder are quantized in bundles that are. None
        stands for no cut, and for no boundary.
        """
        quantized = self.precision != "fp32" and cut in self.line.deep_cuts
        return wire in (None, Wire.FLOAT32) and not quantized


class Bundle:
    """An opened bundle: the `path` of its folder, and its `manifest`. Every file of `part` is verified."""

    def __init__(self, path: Path, manifest: Manifest, part: Part = "whole") -> None:
        self.path = path
        self.manifest = manifest
        self.part = part
        self.names = device_files(manifest) if part == "device" else frozenset(manifest.files)

    @classmethod
    def open(cls, path: Path | str, part: Part = "whole") -> Bundle:
        """Read the manifest and verify every file in the folder. Raises BundleError.

        With `part` "device" the files that only a worker reads may be missing; they are neither verified nor available.
        """
        path = Path(path)
        manifest = read_manifest(path)
        bundle = cls(path, manifest, part)
        check_files(path, manifest.files, bundle.names, bundle.file)
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of this part, checked to be inside the folder. Raises BundleError."""
        if name not in self.names:
            raise BundleError(f"{self.path} is a {self.manifest.role} bundle without {name}")
        if (found := file_inside(self.path, name)) is None:
            if name in self.manifest.files.keys() - device_files(self.manifest):
                raise BundleError(f"{name} is missing from {self.path}, as from a device's part; copy the whole bundle")
            raise BundleError(f"{name} is missing from {self.path}; export the bundle again")
        return found


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`, without verifying the files it lists. Raises BundleError."""
    return manifest_of(manifest_at(path), path)


def manifest_of(content: bytes, path: Path) -> Manifest:
    """The manifest that is the `content` of a file in the bundle at `path`. Raises BundleError."""
    try:
        manifest = _decoded(content, path)
    except UnknownFamily as error:
        raise BundleError(f"{path} holds {error}") from None
    except (*UNREADABLE, ValueError) as error:
        raise BundleError(f"the manifest of {path} does not read ({error}); export the bundle again") from None
    line, layers = manifest.line, manifest.line.layers
    if manifest.decoder.layers != line.decoder:
        raise BundleError(
            f"the manifest of {path} has {line.decoder} decoder layers in `line` and {manifest.decoder.layers} in "
            "`decoder`; export the bundle again"
        )
    if not manifest.stop_tokens:
        raise BundleError(f"the manifest of {path} has no stop tokens, so no answer would end; export the bundle again")
    if len(manifest.parameters) != len(layers):
        raise BundleError(
            f"the manifest of {path} has {len(manifest.parameters)} `parameters` for {len(layers)} layers; "
            "export the bundle again"
        )
    return manifest


def manifest_at(path: Path) -> bytes:
    """The content of the manifest of any bundle at `path`. Raises BundleError."""
    try:
        with _reading(MANIFEST, path):
            return read_regular(path / MANIFEST, limit=MAX_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"no bundle at {path}: it has no {MANIFEST}; make one with `cutline export`") from None


def check_files(path: Path, listed: Mapping[str, str], names: Iterable[str], file: Callable[[str], Path]) -> None:
    """Check that `names` are the files whose hashes are `listed`, and that no others lie beside them.

    `file` gives the path of each. Raises BundleError.
    """
    for name in sorted(names):
        with _reading(name, path):
            if sha256_of(file(name)) != listed[name]:
                raise BundleError(f"{name} in {path} is not the file that the manifest names (hash differs)")
    with _reading("the folder", path):
        found = {file.name for file in path.iterdir() if not is_draft(file.name)}
    # A library that gets the folder could load other files, which were not verified.
    if unlisted := found - {MANIFEST, JOURNAL, _FIRST_CALIBRATION, *listed}:
        raise BundleError(f"{min(unlisted)} in {path} is not in the manifest; remove it")


def file_inside(path: Path, name: str) -> Path | None:
    """The file of that name in the folder `path`; None if there is none, or if it leads out. Raises BundleError."""
    with _reading(name, path):
        found = (path / name).resolve()
    return found if found.is_relative_to(path.resolve()) and found.is_file() else None


def _decoded(content: bytes, path: Path) -> Manifest:
    """A manifest of any format, in the bundle at `path`, in the current one.

    Raises BundleError, UNREADABLE and ValueError.
    """
    sealed = is_sealed(content)
    if sealed:
        content = unseal(content)
    head = msgspec.json.decode(content, type=_Head)
    made = head.format
    if head.role == "encoder":
        raise BundleError(f"{path} holds an encoder, which answers no question; give a drafter or a target")
    if made not in (_FIRST_FORMAT, FORMAT):
        raise BundleError(
            f"{path} has bundle format {made}, this version reads {_FIRST_FORMAT} to {FORMAT}; export it again"
        )
    fields = msgspec.json.decode(content, type=dict[str, Any])
    if not isinstance(fields.get("family"), dict):
        raise ValueError("it has no family")
    manifest = msgspec.convert(fields | {"family": family_from(fields["family"])}, Manifest)
    if made == _FIRST_FORMAT:
        return _converted(manifest, identity=_first_identity(content), path=path)
    if not sealed:
        raise ValueError("it has no digest of its own")
    if not manifest.identity:
        raise ValueError("it has no identity")
    return manifest


def _converted(manifest: Manifest, *, identity: str, path: Path) -> Manifest:
    """A manifest of the first format, with the calibration from its own file. Raises BundleError."""
    files, calibration = dict(manifest.files), None
    if (digest := files.pop(_FIRST_CALIBRATION, None)) is not None:
        try:
            with _reading(_FIRST_CALIBRATION, path):
                content = read_regular(path / _FIRST_CALIBRATION, limit=MAX_MANIFEST)
        except FileNotFoundError:
            raise BundleError(f"{_FIRST_CALIBRATION} is missing from {path}; export the bundle again") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise BundleError(
                f"{_FIRST_CALIBRATION} in {path} is not the file that the manifest names; calibrate again"
            )
        try:
            calibration = msgspec.json.decode(content, type=dict[str, Any])
        except UNREADABLE as error:
            raise BundleError(f"{_FIRST_CALIBRATION} in {path} does not read ({error}); calibrate again") from None
    return msgspec.structs.replace(manifest, format=FORMAT, identity=identity, files=files, calibration=calibration)


def _first_identity(content: bytes) -> str:
    """The identity of a bundle of the first format: a hash of its manifest on one line, without the calibration file.

    Must not change, as drafters refer to their targets by it.
    """
    fields = msgspec.json.decode(content, type=dict[str, Any])
    fields["files"] = {name: digest for name, digest in sorted(fields["files"].items()) if name != _FIRST_CALIBRATION}
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def part_at(path: Path) -> Part:
    """Which part of a bundle is at `path`: "device" if any file that only a worker reads is missing."""
    manifest = read_manifest(path)
    others = manifest.files.keys() - device_files(manifest)
    return "whole" if all((path / name).is_file() for name in others) else "device"


def copy_bundle(bundle: Bundle, out: Path) -> Bundle:
    """Copy the opened part of `bundle` to `out`, which must not exist, and verify the copy.

    The identity stays the same. Raises BundleError, and OSError if the copy cannot be written.
    """
    names = sorted(bundle.names)
    copy_files([bundle.file(name) for name in names], bundle.manifest, out, lambda path: Bundle.open(path, bundle.part))
    return Bundle(out, bundle.manifest, bundle.part)


def copy_files(files: Iterable[Path], manifest: msgspec.Struct, out: Path, check: Callable[[Path], object]) -> None:
    """Make a bundle `out`, which must not exist, of copies of `files` and a manifest, once `check` takes its folder.

    Raises OSError, and what `check` raises.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        draft = Path(folder) / "bundle"
        draft.mkdir()
        for file in files:
            shutil.copyfile(file, draft / file.name)
        _write(draft, manifest)
        check(draft)
        sync_files(draft)
        draft.rename(out)
        sync_folder(out.parent)


def span_file(cut: str, start: str = "image") -> str:
    """The name of the ONNX graph that runs `[start, cut)`."""
    return f"{start}-to-{cut}.onnx"


def device_files(manifest: Manifest) -> frozenset[str]:
    """The files of a bundle that a device reads: all but a target's weights and config for torch."""
    names = (name for name in manifest.files if name == EMBEDDINGS or not name.endswith(_WORKER_SUFFIXES))
    return frozenset(names)


def write_manifest(path: Path, manifest: AnyManifest) -> AnyManifest:
    """Hash every file in the flat folder `path`, then write the manifest; returns it with `files` and `identity`.

    Raises OSError.
    """
    others = {MANIFEST, JOURNAL, _FIRST_CALIBRATION}
    names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name not in others)
    files = {name: sha256_of(path / name) for name in names if not is_draft(name)}
    manifest = msgspec.structs.replace(manifest, format=FORMAT, files=files)
    hashed = msgspec.structs.replace(manifest, identity="", calibration=None, origin=None)
    identity = hashlib.sha256(msgspec.json.encode(hashed, order="deterministic")).hexdigest()
    manifest = msgspec.structs.replace(manifest, identity=identity)
    _write(path, manifest)
    return manifest


def write_calibration(bundle: Bundle, calibration: msgspec.Struct) -> None:
    """Write `calibration` into the manifest of an opened bundle, in place of an older one; nothing else changes.

    The write is atomic. Raises InputError if the bundle cannot be written, StorageError if the disk is full or fails.
    """
    replace_calibration(
        bundle.path, msgspec.structs.replace(bundle.manifest, calibration=msgspec.to_builtins(calibration))
    )


def set_origin(bundle: Bundle, origin: ModelOrigin) -> None:
    """Write where the weights of an opened bundle are from; nothing else changes. Raises as `write_calibration`."""
    with storing(bundle.path / MANIFEST):
        _write(bundle.path, msgspec.structs.replace(bundle.manifest, origin=origin))


def replace_calibration(path: Path, manifest: msgspec.Struct) -> None:
    """Write a manifest of which only the calibration is new. Raises as `write_calibration`."""
    with storing(path / MANIFEST):
        _write(path, manifest)
        (path / _FIRST_CALIBRATION).unlink(missing_ok=True)


def _write(path: Path, manifest: msgspec.Struct) -> None:
    replace_file(path / MANIFEST, seal(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"))


@contextmanager
def _reading(name: str, path: Path) -> Iterator[None]:
    """Raises BundleError for a file that cannot be read; errors of a missing one pass through."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError is raised for a link to itself
        why = error.strerror if isinstance(error, OSError) else "it is a link to itself"
        raise BundleError(f"{name} in {path} cannot be read: {why}") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file in hexadecimal. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
