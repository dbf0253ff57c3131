"""`cutline bundle show` and `cutline bundle copy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.terminal.tables import amount
from cutline.models.bundle import Bundle, Part, copy_bundle, part_at
from cutline.models.encoders.bundle import EncoderBundle, is_encoder
from cutline.models.hub.library import find_any_bundle

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cutline.cli.terminal.gate_view import PopulationsView
    from cutline.core.wire import Wire
    from cutline.edge.generation.gate import Gate
    from cutline.models.bundle import Manifest
    from cutline.models.costs import Sizes
    from cutline.models.pairs.pair import Shared
    from cutline.models.prices import Prices

COPY = "Example: cutline bundle copy my-target on-the-device --part device"
SHOW = "Example: cutline bundle show my-target"

IMAGE_SIZE = (1024, 768)  # width and height of the image that is asked about
WORDS = (  # 32 of them
    "Look at the picture and say which of the things in it stand on the left, which of them are red, how many there "
    "are in all, and what is written there"
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle's folder, or its name in `cutline list`.")]

app = typer.Typer(help="Look into a bundle, copy the part of it that a device needs, or give it to devices.")


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A cut of the layer line; pairs are of the layers before and after it, `flops` of a request's first token.

    `here` says whether the bundle has the graphs of the layers before. `boundary` is what crosses, rows and width, and
    `bytes` its size in each format; both None at `image`, where a picture crosses.
    """

    name: str
    here: bool
    boundary: tuple[int, int] | None
    bytes: dict[str, int] | None
    parameters: tuple[int, int]
    flops: tuple[float, float]
    kv_bytes_per_token: int  # of the layers before


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle as `--json` prints it. `flops_per_token` is that of one more token after the prompt."""

    identity: str
    part: Part
    manifest: Manifest
    image_size: tuple[int, int]
    grid: tuple[int, int]
    image_tokens: int
    prompt_tokens: int
    parameters: int
    flops: float
    flops_per_token: float
    kv_bytes_per_token: int
    cuts: list[Cut]
    files: dict[str, int]  # their sizes
    calibration: Gate | Prices | None
    populations: dict[str, PopulationsView]  # by groups of requests, where the data named any
    shared: Shared | None  # with its target, where it has one


@app.command(epilog=SHOW)
def show(folder: Folder, as_json: options.Json = False) -> None:
    """Show what is in a bundle, and what each cut of its model costs.

    Operations and boundaries are those of a question of 32 words about one image of 1024 by 768 pixels.
    """
    import sys

    from rich.console import Console

    folder = find_any_bundle(folder)
    if is_encoder(folder):
        from cutline.cli.encoder_view import show_encoder

        show_encoder(folder, as_json=as_json)
        return
    seen = _look(Bundle.open(folder, part_at(folder)))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")
    else:
        _show(Console(), seen)


@app.command(epilog=COPY)
def copy(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The copy's folder, which must not exist yet.")],
    part: Annotated[
        Part, typer.Option(help="whole, or device: without a target's own weights, which only a worker reads.")
    ] = "whole",
) -> None:
    """Copy a bundle, or the part of it that a device needs; its identity stays the same."""
    from rich.console import Console

    from cutline.core.storage.files import storing
    from cutline.errors import InputError

    folder = find_any_bundle(folder)
    bundle = EncoderBundle.open(folder) if is_encoder(folder) else Bundle.open(folder, part)
    if out.exists():
        raise InputError(f"{out} exists; choose another folder")
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} is inside {folder}, which would be no bundle with it; choose another folder")
    with storing(out):
        if isinstance(bundle, EncoderBundle):  # of which a device needs all
            bundle.copy(out)
        else:
            copy_bundle(bundle, out)
    size = sum(file.stat().st_size for file in out.iterdir())
    line = f"{out}: {part}, {amount(size, 'B')}, identity {bundle.manifest.identity[:12]}"
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)


def _look(bundle: Bundle) -> BundleView:
    from cutline.cli.terminal.gate_view import populations_of
    from cutline.core.conversation import question
    from cutline.edge.generation.gate import Gate
    from cutline.models.bundle import MANIFEST
    from cutline.models.costs import layer_costs, request_sizes
    from cutline.models.pairs.pair import shared_in
    from cutline.models.prompt import PromptBuilder

    manifest, calibration = bundle.manifest, _calibration(bundle)
    grid = manifest.family.grid(IMAGE_SIZE)
    prompt = PromptBuilder.open(bundle).build([question(WORDS)], [grid]).ids
    sizes = request_sizes(manifest, [grid], len(prompt))
    layers = layer_costs(manifest)
    return BundleView(
        identity=manifest.identity,
        part=bundle.part,
        manifest=manifest,
        image_size=IMAGE_SIZE,
        grid=grid,
        image_tokens=sizes.image_tokens,
        prompt_tokens=sizes.tokens,
        parameters=sum(layer.parameters for layer in layers),
        flops=sum(layer.prefill_flops(sizes) for layer in layers),
        flops_per_token=sum(layer.token_flops(sizes.tokens + 1) for layer in layers),
        kv_bytes_per_token=sum(layer.kv_bytes_per_token for layer in layers),
        cuts=_cuts(manifest, sizes) if manifest.role == "target" else [],
        files={name: (bundle.path / name).stat().st_size for name in (MANIFEST, *sorted(bundle.names))},
        calibration=calibration,
        populations=populations_of(calibration) if isinstance(calibration, Gate) else {},
        shared=None if manifest.target is None else shared_in(bundle),
    )


def _calibration(bundle: Bundle) -> Gate | Prices | None:
    from cutline.edge.generation.gate import open_gate
    from cutline.models.prices import open_prices

    if bundle.manifest.role == "target":
        return open_prices(bundle)
    return open_gate(bundle) if bundle.manifest.calibration is not None else None


def _cuts(manifest: Manifest, sizes: Sizes) -> list[Cut]:
    from cutline.core.wire import Wire
    from cutline.edge.inference.target_prefix import device_cuts
    from cutline.models.costs import layer_costs

    layers, here = layer_costs(manifest), device_cuts(manifest)
    parameters = [layer.parameters for layer in layers]
    flops = [layer.prefill_flops(sizes) for layer in layers]
    cuts = []
    for place, layer in enumerate(layers):
        if layer.name not in manifest.line.cuts:
            continue
        sent = {wire.value: layer.boundary_bytes(sizes, wire) for wire in Wire}
        cuts.append(
            Cut(
                name=layer.name,
                here=place == 0 or layer.name in here,
                boundary=layer.boundary(sizes),
                bytes={wire: count for wire, count in sent.items() if count is not None} or None,
                parameters=(sum(parameters[:place]), sum(parameters[place:])),
                flops=(sum(flops[:place]), sum(flops[place:])),
                kv_bytes_per_token=sum(one.kv_bytes_per_token for one in layers[:place]),
            )
        )
    return cuts


def _show(console: Console, seen: BundleView) -> None:
    from cutline.cli.encoder_view import origin_lines
    from cutline.cli.terminal.gate_view import pictures_told, show_gate
    from cutline.cli.terminal.tables import show_table
    from cutline.models.prices import Prices

    manifest = seen.manifest
    width, height = seen.image_size
    lines = [
        f"{manifest.name}: {manifest.role}, {manifest.precision}, family {manifest.family.__struct_config__.tag}, "
        f"{amount(seen.parameters)} parameters, context of {manifest.decoder.context} tokens",
        f"identity {seen.identity}",
        *origin_lines(manifest.origin),
        f"a question of 32 words about an image of {width} by {height} pixels: {seen.image_tokens} of its "
        f"{seen.prompt_tokens} tokens are the image's; {amount(seen.flops)} operations to its first token, "
        f"{amount(seen.flops_per_token)} for one more, {amount(seen.kv_bytes_per_token, 'B')} of cache a token",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if seen.shared is not None:
        console.print(seen.shared.told, highlight=False, soft_wrap=True)
    if seen.cuts:
        show_table(console, _cut_table(seen.cuts))
    files = _table("file", "size", title="Files" if seen.part == "whole" else "Files, the device's part alone")
    for name, size in seen.files.items():
        files.add_row(name, amount(size, "B"))
    show_table(console, files)
    calibration = seen.calibration
    if calibration is None:
        console.print("not calibrated; see `cutline calibrate`", highlight=False)
    elif isinstance(calibration, Prices):
        show_table(console, price_table(calibration))
        if calibration.leaks:
            show_table(console, _leak_table(calibration))
    else:
        console.print("the gate, by groups of requests; nothing of any other is kept:", highlight=False)
        show_gate(console, calibration)
        console.print(f"  {pictures_told(calibration.pictures)}", highlight=False, soft_wrap=True)


def _cut_table(cuts: list[Cut]) -> Table:
    table = _table("cut", "boundary", "fp32", "int4", title="Cuts: what crosses, and what runs before | after")
    for heading in ("parameters", "operations"):
        table.add_column(heading, justify="right")
    table.add_column("cache a token before", justify="right")
    for cut in cuts:
        crossing = ["a picture", "", ""]
        if cut.boundary is not None and cut.bytes is not None:
            rows, width = cut.boundary
            crossing = [f"{rows} x {width}", amount(cut.bytes["fp32"], "B"), amount(cut.bytes["int4"], "B")]
        table.add_row(
            cut.name if cut.here else f"{cut.name} (no graphs)",
            *crossing,
            " | ".join(map(amount, cut.parameters)),
            " | ".join(map(amount, cut.flops)),
            amount(cut.kv_bytes_per_token, "B"),
        )
    return table


def price_table(prices: Prices) -> Table:
    """What each cut and format costs, a row a cut."""
    from cutline.core.wire import Wire

    title = f"Prices: bytes up, and how many of {prices.questions} answers stayed exactly the target's"
    table = _table("cut", *Wire, title=title)
    rows: dict[str, dict[Wire, str]] = {}
    for price in prices.prices:
        kept = price.keep_image_tokens
        name = price.cut if kept == 1.0 else f"{price.cut}, {kept:.0%} of image tokens"
        rows.setdefault(name, {})[price.wire] = f"{amount(price.bytes_up, 'B')}, {price.answers:.1%}"
    for name, cells in rows.items():
        table.add_row(name, *(cells.get(wire, "") for wire in Wire))
    return table


def _leak_table(prices: Prices) -> Table:
    """What was recovered of pictures at each cut in each format, a row a cut."""
    from cutline.core.wire import Wire

    table = _table("cut", *Wire, title="Leaks: the share of a picture's variance that an attacker recovered")
    recovered = prices.recovered
    for cut in dict.fromkeys(cut for cut, _ in recovered):
        found = (recovered.get((cut, wire)) for wire in Wire)
        table.add_row(cut, *("" if leak is None else f"{leak:.1%}" for leak in found))
    return table


def _table(first: str, *others: str, title: str | None = None) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
