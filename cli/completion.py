"""Names for a shell to complete: of profiles, links and published models that come with Cutline."""

from __future__ import annotations


def devices(incomplete: str) -> list[str]:
    """The devices' and workers' profiles that begin so."""
    from cutline.devices.profile import profile_names

    return [name for name in profile_names() if name.startswith(incomplete)]


def links(incomplete: str) -> list[str]:
    """The links' profiles that begin so."""
    from cutline.devices.link import link_names

    return [name for name in link_names() if name.startswith(incomplete)]


def shapes(incomplete: str) -> list[str]:
    """The published models that begin so."""
    from cutline.models.shapes import known_shapes

    return [name for name in known_shapes() if name.startswith(incomplete)]
