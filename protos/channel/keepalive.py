"""How both ends of a gRPC connection find out that the other is gone: one table, since each has to suit the other.

An end pings when nothing came for a while, and hangs up when no answer comes. A server takes pings that come too often
for an attack and ends the connection; by default also those of a client that has no call under way.
"""

from __future__ import annotations

PING_SECONDS = 20  # without a word from the other end
ANSWER_SECONDS = 10
LEAST_SECONDS = 5  # between a client's pings, for a server to take them: less than it waits, and than its clock may err

Options = tuple[tuple[str, int], ...]

_BOTH: Options = (
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", ANSWER_SECONDS * 1000),
    # gRPC waits a minute for the answer to a ping unless this says otherwise, too.
    ("grpc.http2.ping_timeout_ms", ANSWER_SECONDS * 1000),
    # A client pings between its calls as well. To a server this says two things: so does it, and it lets its clients.
    ("grpc.keepalive_permit_without_calls", 1),
)
CLIENT: Options = _BOTH
SERVER: Options = (*_BOTH, ("grpc.http2.min_ping_interval_without_data_ms", LEAST_SECONDS * 1000))
