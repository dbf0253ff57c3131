"""Network addresses as HOST:PORT."""

from __future__ import annotations

import ipaddress
import socket

from cutline.errors import InputError


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; an IPv6 host is in brackets, in the result too. Raises InputError."""
    host, _, port = text.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InputError(f"{text!r} is not HOST:PORT; an IPv6 address stands in brackets, such as [::1]:50051")
    # gRPC would take a slash for part of a scheme or a path.
    if not (host and port.isascii() and port.isdecimal() and int(port) < 1 << 16) or "/" in host:
        raise InputError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or `localhost`; other names are not resolved."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reached_at(address: str) -> str:
    """HOST:PORT for other machines to reach a server that listens at `address`, which may be a wildcard."""
    host, port = parse_address(address)
    try:
        wildcard = ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return address
    return f"{_outbound_address()}:{port}" if wildcard else address


def _outbound_address() -> str:
    """This machine's address on the default route, or without a route its name. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737)
        except OSError:
            return socket.gethostname()
        return str(udp.getsockname()[0])
