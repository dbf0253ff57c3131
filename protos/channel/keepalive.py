"""Keepalive options of gRPC clients and servers, in one table because they must fit together.

Each end pings after a silence, and closes the connection if there is no answer. A server takes too frequent pings for
an attack and closes the connection; by default also any ping of a client without a call in flight.
"""

from __future__ import annotations

PING_SECONDS = 20  # of silence before a ping
ANSWER_SECONDS = 10
MIN_PING_SECONDS = 5  # that a server demands between a client's pings: well under PING_SECONDS, as clocks drift

Options = tuple[tuple[str, int], ...]

_BOTH: Options = (
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", ANSWER_SECONDS * 1000),
    # Without this one too, gRPC waits a minute for the answer to a ping.
    ("grpc.http2.ping_timeout_ms", ANSWER_SECONDS * 1000),
    # On a client: ping between calls too. On a server: do so, and accept such pings.
    ("grpc.keepalive_permit_without_calls", 1),
)
CLIENT: Options = _BOTH
SERVER: Options = (*_BOTH, ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000))
