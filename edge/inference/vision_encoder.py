"""The vision encoder on ONNX Runtime: a model's span from the image to a cut up to `decoder.0`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cutline.devices.profile import CPU
from cutline.edge.inference.runtime import open_session
from cutline.errors import BundleError
from cutline.models.bundle import SPAN_WEIGHTS, Bundle, Manifest, span_file
from cutline.models.families import Family, Grid


class VisionSpan:
    """The layers `[image, cut)` of a bundle: vision tower and maybe connector. Stateless, for any threads."""

    def __init__(self, session: ort.InferenceSession, family: Family) -> None:
        self._session = session
        self._family = family
        shapes = {value.name: value.shape for value in session.get_inputs()}
        self._inputs = shapes.keys()
        # A graph with fixed sizes takes one tile: on a CPU a batch is not faster, and needs more memory for attention.
        self._at_once = shapes["pixels"][0] if isinstance(shapes["pixels"][0], int) else None
        self._width = session.get_outputs()[0].shape[-1]

    @classmethod
    def open(cls, bundle: Bundle, cut: str, *, threads: int, provider: str = CPU) -> VisionSpan:
        """Load the span that ends at `cut`, with its weights only. Raises InputError, BundleError."""
        bundle.file(SPAN_WEIGHTS)  # checks that the manifest lists it, so it was verified
        session = open_session(bundle.file(span_file(cut)), threads=threads, provider=provider)
        if not _fits(session, bundle.manifest, cut):
            raise BundleError(f"{span_file(cut)} in {bundle.path} is not of the manifest's sizes; export it again")
        return cls(session, bundle.manifest.family)

    def __call__(self, pixels: NDArray[np.float32], grids: Sequence[Grid]) -> NDArray[np.float32]:
        """The boundary (n, streams * width) of `pixels`, the values of all images with these `grids`, concatenated."""
        boundaries = [np.empty((0, self._width), np.float32)]
        for values, beside in self._family.runs(pixels, grids):
            given = {name: array for name, array in beside.items() if name in self._inputs}
            size = self._at_once or len(values)
            for first in range(0, len(values), size):
                (boundary,) = self._session.run(None, {"pixels": values[first : first + size], **given})
                boundaries.append(boundary.reshape(-1, self._width))
        return np.concatenate(boundaries)


def _fits(session: ort.InferenceSession, manifest: Manifest, cut: str) -> bool:
    """Whether a graph's inputs and output have the manifest's sizes, as far as the graph fixes them."""
    family = manifest.family
    example = family.example(0)
    ((values, beside),) = family.runs(example.values, [example.grid])
    given = {"pixels": values, **beside}
    width = (manifest.decoder if cut == "decoder.0" else manifest.vision).width
    made = family.crossing(manifest.line, cut, example.grid), width * family.streams(manifest.line, cut)
    pairs = [(value.shape, given[value.name].shape if value.name in given else ()) for value in session.get_inputs()]
    pairs.append((session.get_outputs()[0].shape[-2:], made))
    return "pixels" in {value.name for value in session.get_inputs()} and all(
        len(shape) == len(size)
        and all(not isinstance(fixed, int) or fixed == side for fixed, side in zip(shape, size, strict=True))
        for shape, size in pairs
    )
