"""A line in the log for every session that ended: its figures, never its content."""

from __future__ import annotations

import logging

from cutline.cloud.telemetry.log_limit import Sparing
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account

log = logging.getLogger(__name__)


class SessionLog(Observer):
    """Writes a line a session; of those that were never opened one a second, which says how many there were."""

    def __init__(self) -> None:
        self._unopened = Sparing(lambda fields: log.info("session", extra={"fields": fields}))

    def ended(self, account: Account) -> None:
        if account.opened is None:
            self._unopened.tell(account.fields())
        else:
            log.info("session", extra={"fields": account.fields()})
