"""Changed manifests, which may be such as Cutline would never write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cutline.core.storage.seal import is_sealed, seal, unseal
from cutline.models.bundle import MANIFEST


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the manifest of the bundle in `folder`, and correct its digest."""
    file = folder / MANIFEST
    content = file.read_bytes()
    said = msgspec.json.decode(unseal(content) if is_sealed(content) else content)
    change(said)
    changed = msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n"
    file.write_bytes(seal(changed) if is_sealed(content) else changed)
