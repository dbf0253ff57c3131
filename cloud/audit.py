"""Who did what on a worker and how it ended, without any content: on the logger `cutline.audit`."""

from __future__ import annotations

import asyncio
import logging

from cutline.cloud.accounts import Account
from cutline.cloud.observer import Observer
from cutline.errors import AccessDenied

log = logging.getLogger("cutline.audit")

# An agent asks these many times a minute, to measure its link and to see whether there is room; they tell of nothing.
# How a session ended its account knows better than the call.
_UNTOLD = frozenset(
    {
        "/cutline.v1.Directory/List",
        "/cutline.v1.Worker/Describe",
        "/cutline.v1.Worker/Probe",
        "/cutline.v1.Worker/Session",
    }
)

DENIED_SECONDS = 1.0  # between two lines about calls of strangers, who may be many


class Audit(Observer):
    """Writes a line a call, and of those that are denied one a second. As an observer it hears of sessions."""

    def __init__(self) -> None:
        self._denied = 0  # calls since the last line about such
        self._last: dict[str, str] = {}
        self._pause: asyncio.TimerHandle | None = None

    def denied(self, method: str, why: AccessDenied) -> None:
        """Somebody called `method` and could not say who they are. Of many a second one line says how many.

        Called on an event loop.
        """
        self._denied += 1
        self._last = {"method": method[:80], "why": str(why)}
        if self._pause is None:
            self._tell()

    def _tell(self) -> None:
        """Write of the last call that was denied, and how many were since the line before; then pause."""
        self._pause = None
        if self._denied:
            log.warning("denied", extra={"fields": self._last | {"count": self._denied}})
            self._denied = 0
            self._pause = asyncio.get_running_loop().call_later(DENIED_SECONDS, self._tell)

    def served(self, method: str, tenant: str, outcome: str) -> None:
        """A tenant's call ended."""
        if method not in _UNTOLD:
            log.info("served", extra={"fields": {"tenant": tenant, "method": method[:80], "outcome": outcome}})

    def ended(self, account: Account) -> None:
        fields = {
            "tenant": account.tenant,
            "method": "Session",
            "session": account.session,
            "request": account.request_id,
            "outcome": account.status,
        }
        log.info("served", extra={"fields": fields})
