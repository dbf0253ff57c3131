"""A line in the log for every session that ended: its figures, never its content."""

from __future__ import annotations

import logging

from cutline.cloud.accounts import Account
from cutline.cloud.observer import Observer

log = logging.getLogger(__name__)


class Journal(Observer):
    """Writes a line a session."""

    def ended(self, account: Account) -> None:
        log.info("session", extra={"fields": account.fields()})
