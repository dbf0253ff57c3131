"""What a cut and a wire format were measured to cost: bytes up, and answers that are no longer the target's own.

`cutline calibrate` asks the same questions at every cut in every format and writes what it found into the target's
bundle. Answers are greedy, and bytes are those of sessions of mode `split`, or `cloud` at `image`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cutline.core.wire import Wire
from cutline.errors import BundleError
from cutline.models.bundle import Bundle

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to ask: a cut, a wire format, and the share of image tokens that enters the decoder.

    `bytes_up` is a mean over the questions. Of them the share `answers` has exactly the target's tokens; `tokens` is
    the share of the target's tokens that stand at the same place in the answer; `right` is the share of right answers,
    where those were known.
    """

    cut: str
    wire: Wire
    keep_image_tokens: Share = 1.0
    bytes_up: Annotated[float, msgspec.Meta(ge=0)]
    answers: Share
    tokens: Share
    right: Share | None


class Leak(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an attacker who learnt to invert a boundary recovered of pictures that he had not seen.

    `recovered` is the share of the pictures' variance around their mean: 0 is a blind guess, 1 the picture itself.
    """

    cut: str
    wire: Wire
    recovered: Share


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that was measured on `questions` questions, as a target's bundle holds it.

    `leaks` were measured apart, on pictures of one kind and with one attack.
    """

    questions: Annotated[int, msgspec.Meta(ge=1)]
    prices: tuple[Price, ...]
    leaks: tuple[Leak, ...] = ()

    @property
    def agreement(self) -> dict[tuple[str, Wire], float]:
        """The share of answers that are exactly the target's, by cut and format, with all image tokens kept."""
        return {(one.cut, one.wire): one.answers for one in self.prices if one.keep_image_tokens == 1.0}

    @property
    def recovered(self) -> dict[tuple[str, Wire], float]:
        """What was recovered of pictures, by cut and format."""
        return {(one.cut, one.wire): one.recovered for one in self.leaks}


def open_prices(bundle: Bundle) -> Prices | None:
    """The prices in a target's bundle; None when they were not measured. Raises BundleError."""
    if bundle.manifest.calibration is None:
        return None
    try:
        return msgspec.convert(bundle.manifest.calibration, type=Prices)
    except msgspec.ValidationError as error:
        raise BundleError(f"the calibration in {bundle.path} does not read ({error}); calibrate again") from None
