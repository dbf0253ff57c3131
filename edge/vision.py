"""The drafter's eyes: the vision tower and connector of a bundle, on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cutline.edge.runtime import open_session
from cutline.errors import BundleError
from cutline.models.bundle import Bundle


class VisionTower:
    """Turns tiles of pixels into rows of the decoder's residual stream. Holds no state: threads may share one."""

    def __init__(self, session: ort.InferenceSession, *, tokens: int, width: int) -> None:
        self._session = session
        self._tokens = tokens
        self._width = width

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int) -> VisionTower:
        """Load the tower of a drafter's bundle. Raises BundleError."""
        image, width = bundle.manifest.image, bundle.manifest.decoder.width
        session = open_session(bundle.file("vision.onnx"), threads=threads)
        takes, gives = session.get_inputs()[0].shape[1:], session.get_outputs()[0].shape[1:]
        if takes != [3, image.tile, image.tile] or gives != [image.tokens, width]:
            raise BundleError(f"vision.onnx in {bundle.path} is not of the sizes in the manifest; export it again")
        return cls(session, tokens=image.tokens, width=width)

    def __call__(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image rows (n * tokens, width) of `tiles` (n, 3, tile, tile), normalized as the manifest's image says."""
        rows = np.empty((len(tiles), self._tokens, self._width), np.float32)
        # One tile at a time: a batch is no faster on a CPU, and attention's memory grows with it.
        for index in range(len(tiles)):
            (rows[index : index + 1],) = self._session.run(["rows"], {"pixels": tiles[index : index + 1]})
        return rows.reshape(-1, self._width)
