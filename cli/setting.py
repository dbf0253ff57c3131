"""What several commands do before their own work: find the bundle, count threads, check an address."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.cores import usable_cores
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.protos.address import parse_address

if TYPE_CHECKING:
    from cutline.edge.planning import Planner


def open_drafter(path: Path | None) -> Bundle:
    """The drafter's bundle at `path`, or the demo's. Raises BundleError."""
    return Bundle.open(path or DRAFTER)


def open_target(path: Path | None) -> Bundle:
    """The target's bundle at `path`, or the demo's. Raises BundleError."""
    return Bundle.open(path or TARGET)


def open_target_for(path: Path | None, drafter: Path | None) -> Bundle | None:
    """What a device needs of the target's bundle at `path`; without it the demo's, if the drafter is the demo's.

    Raises BundleError.
    """
    return Bundle.open(path or TARGET, "device") if path or drafter is None else None


def open_planner(
    edge: str | None, cloud: str | None, link: str | None, drafter: Bundle, target: Bundle | None
) -> Planner | None:
    """The planner of an agent with these profiles, None where none is given. Raises InputError, BundleError."""
    if edge is None and cloud is None and link is None:
        return None
    if edge is None or cloud is None or link is None:
        raise InputError("planning needs all three of --edge-profile, --cloud-profile and --link")
    if target is None:
        raise InputError("planning needs the target's bundle; give it with --target")

    from cutline.devices.link import load_link
    from cutline.edge.planning import Planner
    from cutline.edge.setting import setting_of

    return Planner(setting_of(drafter, target, edge=edge, cloud=cloud), load_link(link))


def thread_count(given: int | None) -> int:
    """Threads of the model: what was given, else the cores that this process really has."""
    if given is not None and given < 1:
        raise InputError(f"--threads is {given}; give 1 or more")
    return given or usable_cores()


def check_listen(listen: str, *, insecure: bool) -> None:
    """That `listen` is HOST:PORT, and of this machine alone unless `insecure` allows others. Raises InputError."""
    host, _ = parse_address(listen)
    if not insecure and not is_loopback(host):
        raise InputError(f"{host} can be reached from outside and traffic is plain text; --insecure says you accept it")


def is_loopback(host: str) -> bool:
    """Whether `host` is one of this machine's own addresses."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
