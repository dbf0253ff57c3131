"""Sets Ray's environment variables. Ray reads them once, on import, so this module does not import Ray.

Ray runs any code that its clients send, so strangers must not reach it. A Ray that is started here listens on loopback
and requires a random token; one that runs already must require a token too.
"""

from __future__ import annotations

import os
import secrets

from cutline.core.telemetry import switch_off
from cutline.errors import InputError


def prepare(address: str | None) -> None:
    """Set the environment for the Ray at `address`, or for None for one to be started here.

    Raises InputError if the Ray at `address` would be used without a token: it obeys everybody who reaches its ports.
    """
    switch_off()
    if address is None:
        # On Linux Ray replaces 127.0.0.1 by the machine's address and listens on all interfaces. On systems where it
        # supports no clusters it stays on loopback; this variable makes it do the same here.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray would end its actors a minute after its controller died; open sessions may take longer to drain.
        os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "3600"  # noqa: SIM112 (Ray's spelling)
        # Ray would run workers at the lowest priority.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
    elif os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise InputError(
            f"the Ray at {address} may obey everybody who reaches it; start it with RAY_AUTH_MODE=token, and set that "
            "and RAY_AUTH_TOKEN_PATH here too"
        )
