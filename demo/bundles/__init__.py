"""Where the demo's two bundles lie."""

from pathlib import Path

TARGET = Path(__file__).parent / "target"
DRAFTER = Path(__file__).parent / "drafter"
