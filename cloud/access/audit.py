"""Who did what on a worker and how it ended, without any content: on the logger `cutline.audit`."""

from __future__ import annotations

import logging

from cutline.cloud.telemetry.log_limit import Sparing
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account
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


class Audit(Observer):
    """Writes a line a call, and of those that are denied or never opened a session one a second.

    As an observer it hears of sessions.
    """

    def __init__(self) -> None:
        self._denials = Sparing(lambda fields: log.warning("denied", extra={"fields": fields}))
        self._unopened = Sparing(lambda fields: log.info("served", extra={"fields": fields}))

    def denied(self, method: str, why: AccessDenied) -> None:
        """Somebody called `method` and could not say who they are. Of many a second one line says how many.

        Called on an event loop.
        """
        self._denials.tell({"method": method[:80], "why": str(why)})

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
        if account.opened is None:
            self._unopened.tell(fields)
        else:
            log.info("served", extra={"fields": fields})
