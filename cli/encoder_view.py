"""An encoder's bundle as `cutline bundle show` shows it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cutline.cli.terminal.tables import amount, show_table
from cutline.models.bundle import MANIFEST
from cutline.models.encoders.bundle import EncoderBundle, EncoderManifest
from cutline.models.hub.origin import ModelOrigin

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.edge.watch.scene_filter import SceneThreshold


class EncoderView(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder's bundle as `--json` prints it; `boundary` is what crosses at each of the `cuts`, rows and width."""

    identity: str
    manifest: EncoderManifest
    cuts: tuple[str, ...]
    boundary: tuple[int, int]
    bytes: int
    files: dict[str, int]  # their sizes
    calibration: dict[str, SceneThreshold]


def show_encoder(folder: Path, *, as_json: bool) -> None:
    """Show what is in an encoder's bundle. Raises BundleError."""
    from rich.console import Console

    from cutline.edge.watch.scene_filter import thresholds_of

    bundle = EncoderBundle.open(folder)
    manifest = bundle.manifest
    seen = EncoderView(
        identity=manifest.identity,
        manifest=manifest,
        cuts=manifest.cuts,
        boundary=(manifest.patches, manifest.width),
        bytes=4 * manifest.patches * manifest.width,
        files={name: (bundle.path / name).stat().st_size for name in (MANIFEST, *sorted(manifest.files))},
        calibration=thresholds_of(manifest),
    )
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")
    else:
        _show(Console(highlight=False), seen)


def origin_lines(origin: ModelOrigin | None) -> list[str]:
    """Where a bundle's weights were pulled from, if they were, and what they have learnt."""
    if origin is None:
        return []
    lines = [f"weights of {origin.name} on {origin.hub}, {origin.revision}: commit {origin.commit}"] * bool(origin.hub)
    if (learnt := origin.learnt) is not None:
        whose = ", ".join(tenant or "(no name)" for tenant in learnt.tenants)
        lines.append(f"learnt from {learnt.answers} answers to {whose}; before it was {learnt.drafter[:12]}")
        lines += ["to be made anew: what it learnt from was deleted in part"] * learnt.anew
    return lines


def _show(console: Console, seen: EncoderView) -> None:
    from rich.table import Table

    manifest, (rows, width) = seen.manifest, seen.boundary
    side, kind, dimensions = manifest.images.side, manifest.scores.kind, manifest.dimensions
    for line in (
        f"{manifest.name}: encoder, {manifest.precision}, family {manifest.family}, rows of {dimensions} numbers",
        f"identity {seen.identity}",
        *origin_lines(manifest.origin),
        f"images of {side} by {side} pixels, texts of {manifest.texts.length} tokens at most; scores by {kind}",
        f"cuts {seen.cuts[0]} to {seen.cuts[-1]}: {rows} x {width} crosses, {amount(seen.bytes, 'B')} in fp32",
    ):
        console.print(line, markup=False, soft_wrap=True)
    files = Table("file", "size", title="Files", title_justify="left")
    for name, size in seen.files.items():
        files.add_row(name, amount(size, "B"))
    show_table(console, files)
    for text, found in seen.calibration.items():
        line = f"{text!r}: frames from {found.threshold:.4f} on; misses {found.risk:.1%} of those that show it at most"
        console.print(line, markup=False, soft_wrap=True)
