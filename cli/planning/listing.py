"""What `cutline plan` knows by name: profiles of machines and links, and shapes of published models."""

from __future__ import annotations

import sys

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cutline.cli.terminal.tables import show_table
from cutline.devices.link import LinkProfile, link_names, load_link
from cutline.devices.profile import DeviceProfile, load_profile, profile_names
from cutline.models.shapes import known_shapes


class KnownShape(msgspec.Struct, frozen=True, kw_only=True):
    """A published model: its name here, who published it, and its weights that rows are multiplied with."""

    name: str
    source: str
    parameters: int


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that comes with Cutline by name."""

    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]
    models: tuple[KnownShape, ...]


def show_known(*, as_json: bool) -> None:
    """Print all that is known by name."""
    known = Known(
        devices=tuple(map(load_profile, profile_names())),
        links=tuple(map(load_link, link_names())),
        models=tuple(
            KnownShape(
                name=name,
                source=shape.source,
                parameters=sum(shape.manifest(name, role="target", precision="fp32").parameters),
            )
            for name, shape in known_shapes().items()
        ),
    )
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(known) + b"\n")
        return
    console = Console(highlight=False)
    machines = _table("machine", "provider", "GB", "GB/s", "fp32 TFLOP/s", "int8 TOP/s", "W")
    for one in known.devices:
        for provider in (one.provider, *one.accelerators):
            rates = one.on(provider).compute
            machines.add_row(
                one.name,
                provider,
                f"{one.memory_bytes / 1e9:g}",
                f"{one.memory_bandwidth / 1e9:g}",
                f"{rates.fp32 / 1e12:.3g}",
                "" if rates.int8 is None else f"{rates.int8 / 1e12:.4g}",
                "" if one.loaded_watts is None else f"{one.loaded_watts:g}",
            )
    links = _table("link", "round trip, ms", "Mbit/s up", "Mbit/s down")
    for link in known.links:
        links.add_row(link.name, f"{link.rtt_ms:g}", f"{link.uplink_mbps:g}", f"{link.downlink_mbps:g}")
    models = _table("model", "million weights", "published as")
    for model in known.models:
        models.add_row(model.name, f"{model.parameters / 1e6:.0f}", model.source)
    for table in (machines, links, models):
        show_table(console, table)
        console.print()


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
