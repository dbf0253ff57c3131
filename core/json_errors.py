"""What msgspec raises on JSON that does not read; besides its own errors, those of text and of nesting without end."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
