"""A log line for every session that ended: its statistics, never its content."""

from __future__ import annotations

import logging

from cutline.cloud.telemetry.log_limit import LimitedLog
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account

log = logging.getLogger(__name__)


class SessionLog(Observer):
    """Writes one line a session; of sessions that were never opened, at most one line a second."""

    def __init__(self) -> None:
        self._unopened = LimitedLog(lambda fields: log.info("session", extra={"fields": fields}))

    def ended(self, account: Account) -> None:
        if account.opened is None:
            self._unopened.add(account.fields())
        else:
            log.info("session", extra={"fields": account.fields()})
