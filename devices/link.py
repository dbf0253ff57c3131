"""Link profiles: round-trip time, rates and loss of a network path between a device and a worker.

A profile is a small TOML file. Six come with Cutline, in `links/` beside this module; `docs/reference/links.md` says
where their figures come from.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from cutline.devices.names import nearest
from cutline.devices.toml import from_toml, read_text
from cutline.errors import ProfileError

MAX_RTT_MS = 600_000.0
MIN_MBPS, MAX_MBPS = 1e-3, 1e6  # no real link is outside, and arithmetic could overflow


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A path from a device (up) to a worker and back (down). Raises ValueError for impossible figures.

    `rtt_ms` is the round-trip time of a small message, half of it in each direction; a single round trip differs from
    it by at most `jitter_ms`. Rates are in megabits (10^6 bits) a second. `loss` is the share of 1460-byte TCP segments
    that are lost. `outages` are (start, duration) in seconds since the link came up, in order; nothing gets through
    during them. `reference` names the source of the figures, and which of them are assumptions.
    """

    name: str
    rtt_ms: float
    uplink_mbps: float
    downlink_mbps: float
    source: Literal["datasheet", "measured"]
    reference: str
    jitter_ms: float = 0.0
    loss: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (self.name and self.name.isprintable()):
            raise ValueError("`name` must be there, of characters that print")
        for key in ("uplink_mbps", "downlink_mbps"):
            if not MIN_MBPS <= getattr(self, key) <= MAX_MBPS:
                raise ValueError(f"`{key}` must be from {MIN_MBPS:g} to {MAX_MBPS:g}")
        if not 0 <= self.rtt_ms <= MAX_RTT_MS:
            raise ValueError(f"`rtt_ms` must be from 0 to {MAX_RTT_MS:g}")
        if not 0 <= self.jitter_ms <= self.rtt_ms:
            raise ValueError("`jitter_ms` must be from 0 to `rtt_ms`")
        if not 0 <= self.loss < 1:
            raise ValueError("`loss` must be a share, 0 or more and less than 1")
        over = 0.0
        for start, duration in self.outages:
            if not (over <= start and 0 < duration < math.inf):
                raise ValueError("`outages` must be [start, duration] in seconds, in order and without overlap")
            over = start + duration


def link_names() -> tuple[str, ...]:
    """The names of the profiles that come with Cutline."""
    files = (resources.files("cutline.devices") / "links").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_link(name_or_path: str | Path) -> LinkProfile:
    """The profile of a known name or in a TOML file. Raises ProfileError, which names the file and the key."""
    known = link_names()
    try:
        if name_or_path in known:
            text = (resources.files("cutline.devices") / "links" / f"{name_or_path}.toml").read_text("utf-8")
        elif name_or_path == "":  # as a path it would be the current folder
            raise FileNotFoundError
        else:
            text = read_text(Path(name_or_path))
        return msgspec.convert(from_toml(text), LinkProfile)
    except FileNotFoundError:
        raise ProfileError(
            f"no link profile {str(name_or_path)!r}{nearest(str(name_or_path), known)}; known are {', '.join(known)}, "
            "or give the path of a TOML file"
        ) from None
    except OSError as error:
        raise ProfileError(f"the link profile {name_or_path} does not read: {error.strerror}") from None
    except ValueError as error:  # too long, not UTF-8, not TOML, not a profile
        raise ProfileError(f"the link profile {name_or_path} does not read: {error}") from None
