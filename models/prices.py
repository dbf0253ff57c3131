"""Measured prices of cuts and wire formats: bytes sent, and answers that differ from the target's own.

`cutline calibrate` asks the same questions at every cut in every format and writes the results into the target's
bundle. Answers are greedy. Sessions have mode `split`, or `cloud` at the cut `image`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cutline.core.wire import Wire
from cutline.errors import BundleError
from cutline.models.bundle import Bundle

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The price of one cut, wire format, and share of image tokens that enters the decoder.

    `bytes_up` is the mean of the questions. `answers` is the share of them with exactly the target's tokens, `tokens`
    the share of the target's tokens at the same position of the answer, and `right` the share of correct answers, if
    those are known.
    """

    cut: str
    wire: Wire
    keep_image_tokens: Share = 1.0
    bytes_up: Annotated[float, msgspec.Meta(ge=0)]
    answers: Share
    tokens: Share
    right: Share | None


class Leak(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of unseen images an attacker recovered who was trained to invert a boundary.

    `recovered` is the explained share of the images' variance: 0 is a blind guess, 1 the image itself.
    """

    cut: str
    wire: Wire
    recovered: Share


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The calibration of a target's bundle, measured on `questions` questions.

    `leaks` were measured separately, on images of one kind and with one attack.
    """

    questions: Annotated[int, msgspec.Meta(ge=1)]
    prices: tuple[Price, ...]
    leaks: tuple[Leak, ...] = ()

    @property
    def agreement(self) -> dict[tuple[str, Wire], float]:
        """The share of answers that are exactly the target's, by cut and format, with all image tokens kept."""
        return {(price.cut, price.wire): price.answers for price in self.prices if price.keep_image_tokens == 1.0}

    @property
    def recovered(self) -> dict[tuple[str, Wire], float]:
        """The recovered share of images by cut and format."""
        return {(leak.cut, leak.wire): leak.recovered for leak in self.leaks}


def open_prices(bundle: Bundle) -> Prices | None:
    """The prices in a target's bundle; None if they were not measured. Raises BundleError."""
    if bundle.manifest.calibration is None:
        return None
    try:
        return msgspec.convert(bundle.manifest.calibration, type=Prices)
    except msgspec.ValidationError as error:
        raise BundleError(f"the calibration in {bundle.path} does not read ({error}); calibrate again") from None
