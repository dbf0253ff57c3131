"""Addresses as people write them."""

from __future__ import annotations

import pytest

from cutline.errors import InputError
from cutline.protos.channel.address import parse_address, reached_at


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("[::1]:0", "[::1]", 0),
        ("worker.example:65535", "worker.example", 65535),
    ],
)
def test_host_and_port_are_told_apart(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:port", "host:65536", "host:²", "unix:/a:1", "h:-1", "::1:50051"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        parse_address(text)


def test_where_others_reach_who_listens_everywhere() -> None:
    for given in ("192.0.2.7:80", "worker.example:80", "[::1]:80"):
        assert reached_at(given) == given
    for everywhere in ("0.0.0.0:80", "[::]:80"):
        host, port = parse_address(reached_at(everywhere))
        assert port == 80
        assert host not in ("0.0.0.0", "[::]")  # noqa: S104 - nothing listens
