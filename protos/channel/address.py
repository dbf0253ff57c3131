"""Addresses as people write them."""

from __future__ import annotations

import ipaddress
import socket

from cutline.errors import InputError


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; an IPv6 host stands in brackets and keeps them. Raises InputError."""
    host, _, port = text.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InputError(f"{text!r} is not HOST:PORT; an IPv6 address stands in brackets, such as [::1]:50051")
    # gRPC would read a slash as a scheme or a path.
    if not (host and port.isascii() and port.isdecimal() and int(port) < 1 << 16) or "/" in host:
        raise InputError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` is one of this machine's own addresses; a name is none, but for localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reached_at(address: str) -> str:
    """HOST:PORT by which other machines may reach who listens at `address`, also where that is all of this machine."""
    host, port = parse_address(address)
    try:
        everywhere = ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return address
    return f"{_outward()}:{port}" if everywhere else address


def _outward() -> str:
    """This machine's address on its way out, or where there is no way its name. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # an address that nobody has
        except OSError:
            return socket.gethostname()
        return str(way.getsockname()[0])
