"""What Ray reads from the environment, once, when it is imported: so this comes first, and imports nothing of it.

Ray runs whatever its clients send, so nobody else may reach it: one that is started here asks for a random token and
is on this machine alone, and one that runs already must be used with a token too.
"""

from __future__ import annotations

import os
import secrets

from cutline.core.telemetry import switch_off
from cutline.errors import InputError


def prepare(address: str | None) -> None:
    """Set the environment for a Ray that runs at `address`, or is to be started here.

    Raises InputError for one that would be used without a token: it obeys everybody who reaches its ports.
    """
    switch_off()
    if address is None:
        # On Linux Ray takes 127.0.0.1 for "this machine", looks up its address and listens at all of them; as on
        # systems for which it has no clusters, it stays on loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray would end all that it started a minute after its controller; what is open may take longer to end in order.
        os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "3600"  # noqa: SIM112 (so Ray has it)
        # Ray would have workers give way to everything else on the machine.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (so Ray has it)
    elif os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise InputError(
            f"the Ray at {address} may obey everybody who reaches it; start it with RAY_AUTH_MODE=token, and set that "
            "and RAY_AUTH_TOKEN_PATH here too"
        )
