"""A dual encoder on ONNX Runtime: images and texts as rows that are compared.

The image tower can be cut: one process makes the rows before a cut, another goes on from them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cutline.core.lru_cache import LruCache
from cutline.devices.machine.cores import usable_cores
from cutline.devices.profile import CPU
from cutline.edge.inference.runtime import open_session
from cutline.errors import BundleError, InputError
from cutline.models.bundle import SPAN_WEIGHTS
from cutline.models.decode_budget import DECODING
from cutline.models.encoders.bundle import TEXT_GRAPH, TEXT_WEIGHTS, EncoderBundle, EncoderManifest
from cutline.models.encoders.scores import of_unit_length
from cutline.models.encoders.tokenizer import TOKENIZER, TextTokenizer
from cutline.models.images import decode_image, read_header
from cutline.models.layerline import END

KEPT_TEXTS = 1024  # whose rows are kept, as the same texts are compared with image after image

Rows = NDArray[np.float32]
Shape = tuple[int, ...]


class Encoder:
    """An encoder's bundle, opened. Its towers are loaded when they are first needed; for any threads."""

    def __init__(self, bundle: EncoderBundle | Path | str, *, threads: int | None = None, provider: str = CPU) -> None:
        """`bundle` may be the path of one. Without `threads` each tower has as many as this process has cores.

        Raises BundleError.
        """
        self.bundle = bundle if isinstance(bundle, EncoderBundle) else EncoderBundle.open(bundle)
        self._threads = threads or usable_cores()
        self._provider = provider
        manifest = self.bundle.manifest
        self._tokenizer = TextTokenizer.read(self.bundle.file(TOKENIZER).read_bytes(), manifest.texts)
        self._sessions: dict[Path, ort.InferenceSession] = {}
        self._lock = threading.Lock()
        self._texts: LruCache[str, Rows] = LruCache(KEPT_TEXTS)

    @property
    def manifest(self) -> EncoderManifest:
        """The description of its bundle."""
        return self.bundle.manifest

    def embed_images(self, images: Sequence[bytes]) -> Rows:
        """The rows (n, dimensions) of image files, of unit length. Raises ImageError, InputError, BundleError."""
        return self.features_of([self._pixels(image) for image in images], "image")

    def embed_texts(self, texts: Sequence[str], *, fresh: bool = False) -> Rows:
        """The rows (n, dimensions) of texts, of unit length. Raises PromptError, InputError, BundleError.

        They are kept for the next time, unless they are `fresh`: those of one stranger would tell others, by the time
        they take, that they were asked for.
        """
        return self._stacked([self._text_row(text) if fresh else self._kept_row(text) for text in texts])

    def count_tokens(self, text: str) -> int:
        """How many tokens the text tower reads of a text. Raises PromptError."""
        return int(self._tokenizer.encode(text).shape[1])

    def scores(self, images: Rows, texts: Rows) -> Rows:
        """The probabilities (images, texts) of rows: as the model was trained, of one text among all (CLIP), or of each
        text by itself (SigLIP)."""
        rules = self.manifest.scores
        return rules.probabilities(rules.logits(images, texts))

    def classify(self, images: Sequence[bytes], texts: Sequence[str], *, template: str = "{}") -> Rows:
        """The `scores` of image files and texts, each put in place of the `{}` of a `template`.

        Raises ImageError, PromptError, InputError, BundleError.
        """
        if not texts:
            raise InputError("there is no text to compare the image with; give one or more")
        return self.scores(self.embed_images(images), self.embed_texts(filled(template, texts)))

    def rows_before(self, cut: str, image: bytes) -> Rows:
        """What crosses a `cut` of the image tower: a row (1, patches, width) for every patch of an image file.

        Raises ImageError, InputError, BundleError.
        """
        self._check(cut)
        pixels = self._pixels(image)
        session = self._session(self.bundle.span("image", cut), pixels.shape, self._crossing)
        (rows,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return np.asarray(rows, np.float32)

    def features_of(self, crossed: Sequence[Rows], cut: str) -> Rows:
        """The rows (n, dimensions) of images, of unit length, from what `crossed` a cut in each.

        Raises InputError, BundleError.
        """
        manifest = self.manifest
        if cut != "image":
            self._check(cut)
            for rows in crossed:
                if rows.shape != self._crossing or rows.dtype != np.float32 or not np.isfinite(rows).all():
                    raise InputError(f"what crosses {cut} is {self._crossing} numbers of float32, and not {rows.shape}")
        given = (1, 3, manifest.images.side, manifest.images.side) if cut == "image" else self._crossing
        session = self._session(self.bundle.span(cut, END), given, (1, manifest.dimensions))
        name = session.get_inputs()[0].name
        return self._stacked([of_unit_length(session.run(None, {name: rows})[0]) for rows in crossed])

    def _pixels(self, image: bytes) -> Rows:
        with DECODING.hold(read_header(image).memory):
            return self.manifest.images.preprocess(decode_image(image))

    def _kept_row(self, text: str) -> Rows:
        if (row := self._texts.get(text)) is None:
            row = self._text_row(text)
            self._texts.put(text, row)
        return row

    def _text_row(self, text: str) -> Rows:
        ids = self._tokenizer.encode(text)
        session = self._session(self.bundle.file(TEXT_GRAPH), ids.shape, (1, self.manifest.dimensions))
        (features,) = session.run(None, {session.get_inputs()[0].name: ids})
        return of_unit_length(np.asarray(features, np.float32))

    def _stacked(self, rows: Sequence[Rows]) -> Rows:
        made = np.concatenate([np.empty((0, self.manifest.dimensions), np.float32), *rows])
        if not np.isfinite(made).all():
            raise BundleError(f"{self.bundle.path} gives rows that are no numbers; export the bundle again")
        return made

    def _check(self, cut: str) -> None:
        """Check that the image tower has a cut. Raises InputError."""
        if cut not in self.manifest.cuts:
            raise InputError(f"{self.manifest.name} has no cut {cut[:40]!r}; cuts: {', '.join(self.manifest.cuts)}")

    @property
    def _crossing(self) -> Shape:
        """The shape of what crosses a cut of the image tower in one image."""
        return 1, self.manifest.patches, self.manifest.width

    def _session(self, path: Path, given: Shape, made: Shape) -> ort.InferenceSession:
        """The session of a graph, loaded once, which makes an array of one shape of an array of another."""
        with self._lock:
            if (session := self._sessions.get(path)) is None:
                for weights in (SPAN_WEIGHTS, TEXT_WEIGHTS):
                    self.bundle.file(weights)  # checks that the manifest lists it, so it was verified
                session = open_session(path, threads=self._threads, provider=self._provider)
                inputs, outputs = session.get_inputs(), session.get_outputs()
                if not (len(inputs) == len(outputs) == 1 and _fits(inputs[0], given) and _fits(outputs[0], made)):
                    raise BundleError(f"{path.name} in {self.bundle.path} is not of the manifest's sizes; export again")
                self._sessions[path] = session
            return session


def _fits(value: ort.NodeArg, shape: Shape) -> bool:
    """Whether an array of a shape is one of a graph's, as far as the graph fixes it."""
    fixed = value.shape
    return len(fixed) == len(shape) and all(
        not isinstance(one, int) or one == side for one, side in zip(fixed, shape, strict=True)
    )


def filled(template: str, texts: Sequence[str]) -> list[str]:
    """Every text in place of the `{}` of a template. Raises InputError."""
    if template.count("{}") != 1:
        raise InputError(f"the template {template[:60]!r} has no single {{}} for a text to stand in")
    return [template.replace("{}", text) for text in texts]
