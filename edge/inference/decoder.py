"""A decoder on ONNX Runtime: shared weights, and a KV cache for each conversation, bound in place.

Every layer's cache is one array of the whole context, bound as both past and present. So a step copies nothing, and a
rollback only sets a length. Steps of one token, the usual ones, also reuse inputs, outputs and bindings.

The graph is a drafter's whole decoder with logits as its output, or the first layers of a target's with the boundary at
a cut. Rows have all streams of `Family.taps` side by side; those of text are zeros beside the residual one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cutline.core.json_errors import UNREADABLE
from cutline.devices.profile import CPU
from cutline.edge.inference.layer_states import FEW, PIECE, LayerStates
from cutline.edge.inference.runtime import open_session
from cutline.errors import BundleError, PromptError
from cutline.models.bundle import EMBEDDINGS, PREFIX_WEIGHTS, Bundle, DecoderSpec, Manifest, span_file
from cutline.models.families.family import PLACES
from cutline.models.families.layer_state import keys_in_graph, states_in_graph
from cutline.models.families.positions import Positions

_LENGTHS = ("seqlens_k", "total_sequence_length")
_Tables = tuple[NDArray[np.float32], ...]


class Decoder:
    """Weights and ONNX session of a decoder, or of its first layers. States share one, in any threads.

    `output` names the graph's output: "logits" of the requested rows, or the "boundary" of every row.
    """

    def __init__(
        self, session: ort.InferenceSession, tables: _Tables, manifest: Manifest, *, layers: int, width: int
    ) -> None:
        """`width` is that of its output."""
        self.spec = spec = manifest.decoder
        self.family = manifest.family
        self.layers = layers
        self.output: str = session.get_outputs()[0].name
        self.rows_width = spec.rows_width(self.family)
        self.width = width
        self.biases = self.family.biases(layers)
        self.keeps = [self.family.keeps(layer) for layer in range(layers)]
        self.session = session
        self._tables = tables

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int, provider: str = CPU) -> Decoder:
        """Load the decoder of a drafter's bundle. Raises InputError, BundleError."""
        bundle.file("decoder.onnx.data")  # checks that the manifest lists it, so it was verified
        layers = bundle.manifest.decoder.layers
        ends = {"logits": bundle.manifest.decoder.vocabulary, "wanted": 0}
        return cls._load(bundle, "decoder.onnx", ends, layers, threads, provider)

    @classmethod
    def open_prefix(cls, bundle: Bundle, cut: str, *, threads: int, provider: str = CPU) -> Decoder:
        """Load `[decoder.0, cut)` of a target's bundle, with its weights only. Raises InputError, BundleError."""
        bundle.file(PREFIX_WEIGHTS)
        manifest = bundle.manifest
        ends = {"boundary": manifest.decoder.width * manifest.family.streams(manifest.line, cut)}
        layers = manifest.line.decoder_layer(cut)
        return cls._load(bundle, span_file(cut, "decoder.0"), ends, layers, threads, provider)

    @classmethod
    def _load(
        cls, bundle: Bundle, name: str, ends: Mapping[str, int], layers: int, threads: int, provider: str
    ) -> Decoder:
        """Load the graph `name`, whose output, with its width, and input of rows `ends` names.

        Raises InputError, BundleError.
        """
        manifest, spec = bundle.manifest, bundle.manifest.decoder
        session = open_session(bundle.file(name), threads=threads, provider=provider)
        inputs = {value.name: value.shape for value in session.get_inputs()}
        keeps = [manifest.family.keeps(layer) for layer in range(layers)]
        caches = {*keys_in_graph(keeps), *(f"past.{name}" for name in states_in_graph(keeps))}
        rotations = manifest.family.rotations(np.zeros((manifest.family.axes, 1), np.int64))
        biases = manifest.family.biases(layers)
        expected = {"inputs_embeds", *_LENGTHS, *caches, *rotations, *biases} | (ends.keys() & {"wanted"})
        expected |= {PLACES} if manifest.family.places_rows else set()
        fits = inputs.keys() == expected and inputs["inputs_embeds"][-1] == spec.rows_width(manifest.family)
        if not fits or (made := session.get_outputs()[0].name) not in ends:
            raise BundleError(f"{name} in {bundle.path} is not of the sizes in the manifest; export it again")
        tables = _map_tables(bundle.file(EMBEDDINGS), spec, layers * manifest.family.layer_inputs)
        return cls(session, tables, manifest, layers=layers, width=ends[made])

    def embed(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows (n, `rows_width`) of the tokens `ids` (n,). Raises ValueError for ids outside the vocabulary."""
        index = np.asarray(ids, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < self.spec.vocabulary:
            raise ValueError(f"token ids {index.min()}..{index.max()} are not all in 0..{self.spec.vocabulary - 1}")
        index = self.family.read_as(index)
        embedded = np.zeros((len(index), self.rows_width), np.float32)
        for table, first in zip(self._tables, (0, self.spec.width * (1 + len(self.family.taps))), strict=False):
            embedded[:, first : first + table.shape[1]] = table[index]
        return embedded

    def new_state(self, positions: Positions | None = None) -> DecoderState:
        """An empty state for a new conversation with tokens at `positions`, by default counted from 0.

        Its cache takes memory only as far as it is filled.
        """
        return DecoderState(self, positions or Positions(np.empty((self.family.axes, 0), np.int64)))


class DecoderState:
    """One conversation: its KV cache, and `position`, the number of tokens in it. For one thread at a time.

    `positions` are those of the prompt's tokens, and of what follows.
    """

    def __init__(self, decoder: Decoder, positions: Positions) -> None:
        self.position = 0
        self.positions = positions
        self._decoder = decoder
        self._spec = decoder.spec
        self._binding = ort.IOBinding(decoder.session)
        spec = decoder.spec
        shapes, presents = spec.key_shapes(decoder.keeps, spec.context), keys_in_graph(decoder.keeps)
        for past, present in presents.items():
            # The system allocates pages of a zeroed array on first write, so most are never allocated.
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shapes[past], np.float32))
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        states = states_in_graph(decoder.keeps)
        self._states = LayerStates(states, self._binding) if states else None
        # From which states that do not rewind are made again.
        self._given = np.zeros((spec.context if states else 0, decoder.rows_width), np.float32)
        self._last = np.zeros(1, np.int32)  # position of the last row
        self._total = np.zeros((), np.int32)
        for name, length in zip(_LENGTHS, (self._last, self._total), strict=True):
            self._bind_input(name, length)
        self._shape = (0, 0)
        self._shape_buffers(1, 1)

    def extend(self, rows: NDArray[np.float32], *, last_only: bool = False) -> NDArray[np.float32]:
        """Append `rows` (n, `Decoder.rows_width`), n > 0; returns the output (n, `Decoder.width`).

        With `last_only`, for logits only, the output is (1, `Decoder.width`) of the last row. Raises PromptError if the
        context has no room for the rows; the state is then unchanged.
        """
        count, width = rows.shape
        if not count or width != self._decoder.rows_width:
            raise ValueError(f"rows of shape {rows.shape} are not (n, {self._decoder.rows_width}) with n > 0")
        total = self.position + count
        if total > self._spec.context:
            raise PromptError(
                f"{total} tokens do not fit the model's context of {self._spec.context}; ask something shorter"
            )
        first = self.position
        if self._states is not None:
            first = self._replayed()
            self._given[self.position : total] = rows
            rows = self._given[first:total]
        made = self._run(rows, first, 1 if last_only else count)
        self.position = total
        return made[-count:]

    def rollback(self, position: int) -> None:
        """Drop every token from `position` on. Raises ValueError for a position outside the state."""
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot roll back to {position}: the state holds {self.position} tokens")
        self.position = position
        if self._states is not None:
            self._states.rollback(position)

    def _replayed(self) -> int:
        """Run rows again until but a few stand between the states and `position`; returns where the states are."""
        assert self._states is not None
        while self.position - self._states.position > FEW:
            first = self._states.position
            self._run(self._given[first : min(first + PIECE, self.position)], first, 1)
            self._states.keep()
        return self._states.position

    def _run(self, rows: NDArray[np.float32], first: int, wanted: int) -> NDArray[np.float32]:
        """The output of `rows` (n, `Decoder.rows_width`) at positions from `first` on; of logits the last `wanted`."""
        total = first + len(rows)
        self._shape_buffers(len(rows), wanted if self._decoder.output == "logits" else len(rows))
        self._rows[0] = rows
        self._last[0] = total - 1
        self._total[()] = total
        family = self._decoder.family
        for name, array in family.rotations(self.positions.at(first, total)).items():
            self._bind_input(name, array)
        if family.places_rows:
            self._bind_input(PLACES, self.positions.at(first, total)[0])
        for name, sight in self._decoder.biases.items():
            self._bind_input(name, sight.bias(self.positions.blocks, first, total))
        if self._states is not None:
            self._states.bind()
        self._decoder.session.run_with_iobinding(self._binding)
        if self._states is not None:
            self._states.ran(len(rows))
        made: NDArray[np.float32] = self._made[0].copy()
        return made

    def resume(self, position: int, positions: Positions) -> None:
        """Drop every token from `position` on, and continue with `positions`, which are equal before it."""
        self.rollback(position)
        self.positions = positions

    def _shape_buffers(self, count: int, wanted: int) -> None:
        """Make and bind buffers for `count` input rows and `wanted` output rows, unless their shapes fit already."""
        if self._shape == (count, wanted):
            return
        self._rows = np.empty((1, count, self._decoder.rows_width), np.float32)
        self._made = np.empty((1, wanted, self._decoder.width), np.float32)
        self._bind_input("inputs_embeds", self._rows)
        if self._decoder.output == "logits":
            self._bind_input("wanted", np.arange(count - wanted, count, dtype=np.int64))
        self._binding.bind_ortvalue_output(self._decoder.output, ort.OrtValue.ortvalue_from_numpy(self._made))
        self._shape = (count, wanted)

    def _bind_input(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))


def _map_tables(path: Path, spec: DecoderSpec, given: int) -> _Tables:
    """The tables of a safetensors file, memory-mapped, as an answer needs few of their rows: embeddings, and what
    layers are given of each token, if that is anything: its first `given` columns. Raises BundleError.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = msgspec.json.decode(file.read(min(length, 4096)), type=dict[str, _Stored])
        tables = [_mapped(path, 8 + length, header["embeddings"], spec.vocabulary)]
        if given:
            tables.append(_mapped(path, 8 + length, header["layer_inputs"], spec.vocabulary)[:, :given])
        if [table.shape[1] for table in tables] == [spec.width, given][: len(tables)]:
            return tuple(tables)
    except KeyError:
        pass
    except (*UNREADABLE, ValueError, OSError) as error:
        raise BundleError(f"{path} does not read ({error}); export the bundle again") from None
    raise BundleError(f"{path} does not hold the embeddings that the manifest describes; export the bundle again")


class _Stored(msgspec.Struct):
    """A tensor, as the header of a safetensors file has it."""

    dtype: str
    shape: tuple[int, int]
    data_offsets: tuple[int, int]


def _mapped(path: Path, begins: int, stored: _Stored, count: int) -> NDArray[np.float32]:
    """A table of so many rows in a file whose tensors begin at `begins`. Raises KeyError for another one."""
    rows, columns = stored.shape
    first, last = stored.data_offsets
    whole = last - first == 4 * rows * columns and begins + last <= path.stat().st_size
    if stored.dtype != "F32" or rows != count or not whole:
        raise KeyError
    return np.memmap(path, np.float32, "r", offset=begins + first, shape=stored.shape)
