"""How a request is carried out: as it says itself, or as it was planned."""

from __future__ import annotations

from dataclasses import dataclass

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.models.bundle import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The `mode`, where the target is cut, and the format in which a boundary crosses.

    A `bounded` one was to be planned by a request's bounds and could not be: nothing of it may go to a worker.
    """

    mode: Mode
    cut: str = "image"
    wire: Wire = Wire.FLOAT32
    bounded: bool = False

    @classmethod
    def unplanned(cls, request: Request) -> Execution:
        """As the request says."""
        return cls(mode=request.mode, cut=request.cut, wire=request.wire, bounded=request.bounded)

    def is_exact(self, request: Request, target: Manifest | None) -> bool:
        """Whether a worker's answer is the target's own, to the bit of a token; layers before a cut are of `target`."""
        changed = request.keep_image_tokens < 1.0 or request.noise > 0.0
        return self.cut == "image" or (target is not None and target.is_exact_at(self.cut, self.wire) and not changed)
