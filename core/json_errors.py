"""What msgspec raises on malformed JSON: its own errors, and those of bad UTF-8 and of too deep nesting."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
