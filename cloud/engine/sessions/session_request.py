"""What a session was opened with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.engine.image_cache import Picture
from cutline.core.request import Priority
from cutline.core.sampling import Sampling
from cutline.models.families import COUNTED, Grid, Positions
from cutline.models.law.penalties import NO_PENALTIES, Penalties

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What a session was opened with, checked and decoded.

    `boundary` is what crossed the `cut`, all float32: at `image` the images' pixels (n, ...); up to the decoder
    rows (n, width), which stand for the image tokens among `tokens`, in order; None if there are none. At a
    `deep` cut, one inside the decoder, it is a row for every one of `tokens` and `draft`, and `sides` are the rows
    (m, width) of pictures that stand beside the prompt, if later layers take them. `grids` are what the images became,
    `times` those of videos' pieces, `positions` where the decoder sees the tokens. `pictures` are the images
    one by one where each has a key; then the boundary has only those that are not kept. Where one has none, it stands
    for all.

    What one `tenant` leaves on the worker no other finds. `deadline` is on the monotonic clock. With `likelihoods` it
    tells how likely each token was, and of the likeliest `alternatives`. `request_id` names it in logs.
    `penalties` are the model's own, `compiled` is the sampling's constraint.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    max_tokens: int
    sampling: Sampling
    effort: float
    draft: tuple[int, ...] = ()
    cut: str = "image"
    deep: bool = False
    boundary: NDArray[np.float32] | None = None
    sides: NDArray[np.float32] | None = None
    grids: tuple[Grid, ...] = ()
    times: tuple[int, ...] = ()
    positions: Positions = COUNTED
    pictures: tuple[Picture, ...] = ()
    tenant: str = ""
    deadline: float | None = None
    likelihoods: bool = False
    alternatives: int = 0
    request_id: str = ""
    priority: Priority = Priority.NORMAL
    penalties: Penalties = NO_PENALTIES
    compiled: CompiledConstraint | None = None

    @property
    def pictured(self) -> bool:
        """Whether rows of images go into its first passes."""
        return self.boundary is not None or any(picture.kept is not None for picture in self.pictures)

    def unladen(self) -> SessionRequest:
        """Without what is large, and wanted no more once the prompt has been run."""
        pictures = tuple(replace(picture, kept=None) for picture in self.pictures)
        return replace(self, boundary=None, pictures=pictures)
