"""The audit log, on the logger `cutline.audit`: who called what on a worker and how it ended, without any content."""

from __future__ import annotations

import logging

from cutline.cloud.telemetry.log_limit import LimitedLog
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account
from cutline.errors import AccessDenied

log = logging.getLogger("cutline.audit")

# Agents call the first three many times a minute, to measure their link and find a worker with room. A session's end is
# logged by `ended`, from its account.
_UNLOGGED_METHODS = frozenset(
    {
        "/cutline.v1.Directory/List",
        "/cutline.v1.Worker/Describe",
        "/cutline.v1.Worker/Probe",
        "/cutline.v1.Worker/Session",
    }
)


class Audit(Observer):
    """Writes one line a call; of calls that are denied or never open a session, at most one line a second."""

    def __init__(self) -> None:
        self._denials = LimitedLog(lambda fields: log.warning("denied", extra={"fields": fields}))
        self._unopened = LimitedLog(lambda fields: log.info("served", extra={"fields": fields}))

    def denied(self, method: str, why: AccessDenied) -> None:
        """A call of `method` failed authentication. To be called on an event loop."""
        self._denials.add({"method": method[:80], "why": str(why)})

    def served(self, method: str, tenant: str, outcome: str) -> None:
        """A tenant's call ended."""
        if method not in _UNLOGGED_METHODS:
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
            self._unopened.add(fields)
        else:
            log.info("served", extra={"fields": fields})
