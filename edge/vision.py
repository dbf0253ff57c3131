"""The device's part of a model before the decoder: the span from the image to a cut, on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cutline.edge.runtime import open_session
from cutline.errors import BundleError, InputError
from cutline.models.bundle import SPAN_WEIGHTS, Bundle, span_file


class VisionSpan:
    """The layers `[image, cut)` of a bundle, vision tower and maybe connector. No state: threads may share one."""

    def __init__(self, session: ort.InferenceSession, *, rows: int, width: int) -> None:
        self._session = session
        self._rows = rows
        self._width = width

    @classmethod
    def open(cls, bundle: Bundle, cut: str, *, threads: int) -> VisionSpan:
        """Load the span that ends at `cut`, and no weights beyond it. Raises InputError, BundleError."""
        manifest = bundle.manifest
        if span_file(cut) not in manifest.files:
            cuts = [one for one in manifest.line.image_cuts if span_file(one) in manifest.files]
            raise InputError(f"{manifest.name} cannot be cut at {cut!r} on a device; cuts: {', '.join(cuts) or 'none'}")
        bundle.file(SPAN_WEIGHTS)  # that the manifest lists it is what makes it verified
        session = open_session(bundle.file(span_file(cut)), threads=threads)
        takes, (rows, width) = session.get_inputs()[0].shape[1:], session.get_outputs()[0].shape[1:]
        image, decoder = manifest.image, manifest.decoder
        fits = cut != "decoder.0" or (rows, width) == (image.tokens, decoder.width)
        if takes != [3, image.tile, image.tile] or not fits:
            raise BundleError(f"{span_file(cut)} in {bundle.path} is not of the manifest's sizes; export it again")
        return cls(session, rows=rows, width=width)

    def __call__(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """The boundary (n * rows, width) of `tiles` (n, 3, tile, tile), normalized as the manifest's image says."""
        boundary = np.empty((len(tiles), self._rows, self._width), np.float32)
        # One tile at a time: a batch is no faster on a CPU, and attention's memory grows with it.
        for index in range(len(tiles)):
            (boundary[index : index + 1],) = self._session.run(None, {"pixels": tiles[index : index + 1]})
        return boundary.reshape(-1, self._width)
