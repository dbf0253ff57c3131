"""Tensors in five formats against other implementations of them, and nothing taken that is not what it says."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from cutline.core.wire import Wire, bytes_per_row
from cutline.errors import InputError, VersionMismatch
from cutline.protos.tensors import CHUNK, decode_tensor, encode_tensor, wire_of
from cutline.protos.v1 import worker_pb2 as pb

Floats = NDArray[np.float32]

LARGEST_BFLOAT16 = torch.finfo(torch.bfloat16).max
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
LEVELS = {Wire.INT8: 127, Wire.INT4: 7}
formats = st.sampled_from(list(Wire))


def floats(limit: float, *, dims: int = 2) -> st.SearchStrategy[Floats]:
    """Arrays of up to `dims` dimensions; zeros, subnormals and values near `limit` come often."""
    shapes = arrays.array_shapes(min_dims=min(dims, 2), max_dims=dims, max_side=9)
    return arrays.arrays(np.float32, shapes, elements=st.floats(-limit, limit, width=32))


def through(values: NDArray[Any], wire: Wire) -> Floats:
    return decode_tensor(pb.Tensor.FromString(encode_tensor(values, wire).SerializeToString()))


@given(
    st.sampled_from(["<f4", ">f4", "<f2", ">f2"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(max_dims=4, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )
)
def test_fp32_brings_an_array_back_bit_by_bit(array: NDArray[Any]) -> None:
    for given_array in (array, array.T):  # whatever its order in memory
        back = through(given_array, Wire.FLOAT32)
        assert back.dtype == np.float32
        assert back.shape == given_array.shape
        assert back.tobytes() == given_array.astype(np.float32).tobytes()
        assert encode_tensor(given_array).data == given_array.astype("<f4").tobytes()  # little-endian, row by row


@given(floats(65504, dims=4))
@example(np.array([[2**-25, 3 * 2**-25, -(2**-24), 65504, 1 + 2**-11, 1 + 3 * 2**-11]], np.float32))
def test_fp16_is_the_nearest_half(values: Floats) -> None:
    expected = torch.from_numpy(values).half().float().numpy()
    back = through(values, Wire.FLOAT16)
    assert back.dtype == np.float32
    assert back.tobytes() == expected.tobytes()
    # The bound that docs/reference/wire.md states.
    assert (np.abs(back.astype(float) - values) <= np.maximum(2.0**-11 * np.abs(values), 2.0**-25)).all()


@given(floats(LARGEST_BFLOAT16, dims=4))
@example(np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1e-45, -1e-40, LARGEST_BFLOAT16]], np.float32))
def test_bf16_is_the_nearest_bfloat16(values: Floats) -> None:
    assert encode_tensor(values, Wire.BFLOAT16).data == values.astype(ml_dtypes.bfloat16).tobytes()
    back = through(values, Wire.BFLOAT16)
    assert back.dtype == np.float32
    assert back.tobytes() == torch.from_numpy(values).bfloat16().float().numpy().tobytes()
    assert (np.abs(back.astype(float) - values) <= np.maximum(2.0**-8 * np.abs(values), 2.0**-134)).all()


@pytest.mark.parametrize("wire", LEVELS)
@given(values=floats(LARGEST_BFLOAT16))
@example(values=np.array([[1e-45, 0], [-1e-38, 1e-39], [LARGEST_BFLOAT16, -LARGEST_BFLOAT16]], np.float32))
@example(values=np.array([[1e4, 0.5, -0.25], [0, 0, 0], [1, 1 / 254, 1 / 14]], np.float32))
def test_an_integer_format_is_off_by_half_a_step_at_most(wire: Wire, values: Floats) -> None:
    back = through(values, wire)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    peaks = np.abs(values.astype(float)).max(axis=1, keepdims=True)
    steps = np.frombuffer(encode_tensor(values, wire).scales, "<f4").astype(float)[:, None]
    assert np.allclose(steps, np.maximum(peaks / LEVELS[wire], np.finfo(np.float32).smallest_normal), rtol=1e-6)
    assert (np.abs(back.astype(float) - values) <= 0.5001 * steps).all()  # and the product's own rounding
    assert (back[(peaks == 0)[:, 0]] == 0).all()


@given(floats(65504), formats, st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_the_rows_beside_it(values: Floats, wire: Wire, random: Any) -> None:
    order = random.sample(range(len(values)), len(values))
    assert np.array_equal(through(values[order], wire), through(values, wire)[order])
    assert np.array_equal(through(values[:1], wire), through(values, wire)[:1])
    assert np.array_equal(through(values[None, :, None], wire), through(values, wire)[None, :, None])


@given(floats(65504), formats)
def test_what_came_once_comes_again(values: Floats, wire: Wire) -> None:
    """A worker that passes a boundary on in the format in which it came adds no error but rounding."""
    once = through(values, wire)
    assert np.allclose(through(once, wire), once, rtol=1e-6, atol=1e-37)


@given(st.integers(1, 9), st.integers(1, 300), formats)
def test_a_row_takes_the_bytes_that_were_promised(count: int, width: int, wire: Wire) -> None:
    tensor = encode_tensor(np.ones((count, width), np.float32), wire)
    assert len(tensor.data) + len(tensor.scales) == count * bytes_per_row(wire, width)
    assert wire_of(tensor) is wire


def test_the_bytes_of_a_row() -> None:
    assert [bytes_per_row(wire, 576) for wire in Wire] == [2304, 1152, 1152, 580, 292]
    assert [bytes_per_row(wire, 3) for wire in Wire] == [12, 6, 6, 7, 6]


@pytest.mark.parametrize(
    ("wire", "values", "data", "scales"),
    [
        (Wire.FLOAT32, [[1.0, -2.0]], "0000803f" + "000000c0", ""),
        (Wire.FLOAT16, [[1.0, -2.0]], "003c" + "00c0", ""),
        (Wire.BFLOAT16, [[1.0, -2.0]], "803f" + "00c0", ""),
        (Wire.INT8, [[63.5, -1.0], [0.0, 254.0]], "7ffe" + "007f", "0000003f" + "00000040"),
        (Wire.INT4, [[7.0, -7.0, 3.0], [-1.75, 0.25, 1.0]], "9703" + "1904", "0000803f" + "0000803e"),
    ],
)
def test_the_bytes_are_those_that_the_documentation_states(
    wire: Wire, values: list[list[float]], data: str, scales: str
) -> None:
    tensor = encode_tensor(np.array(values, np.float32), wire)
    assert (tensor.data.hex(), tensor.scales.hex()) == (data, scales)
    assert np.array_equal(decode_tensor(tensor), np.array(values, np.float32))


@pytest.mark.threat("tensors")
@pytest.mark.parametrize(
    ("kind", "shape", "data", "words"),
    [
        ("UNKNOWN", [1], 4, "type 0"),
        ("FLOAT32", [2, 3], 23, "cannot have 23 bytes"),
        ("FLOAT32", [2, 3], 25, "cannot have 25 bytes"),
        ("FLOAT16", [2, 3], 24, "cannot have 24 bytes"),
        ("BFLOAT16", [2, 3], 11, "cannot have 11 bytes"),
        ("INT8", [2, 3], 7, "cannot have 7 bytes"),
        ("INT4", [2, 3], 3, "cannot have 3 bytes"),  # each row begins on a byte
        ("FLOAT32", [2**32 - 1] * 4, 4, "cannot have 4 bytes"),
        ("FLOAT32", [2**31, 2], 0, "cannot have 0 bytes"),  # 0 bytes modulo 2**32
        ("INT4", [2**32 - 1, 2**32 - 1], 1, "cannot have 1 bytes"),
        ("FLOAT32", [], 4, "1 to 4 dimensions"),
        ("FLOAT32", [1, 1, 1, 1, 1], 4, "1 to 4 dimensions"),
        ("FLOAT32", [0, 4], 0, "none empty"),
        ("INT8", [4, 0], 0, "none empty"),
        ("FLOAT32", [CHUNK // 4 + 1], CHUNK + 4, "too long"),
        ("INT8", [1, CHUNK + 1], CHUNK + 1, "too long"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(kind: Any, shape: list[int], data: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_tensor(pb.Tensor(type=kind, shape=shape, data=bytes(data)))


def test_a_tensor_of_a_later_versions_type_is_told_from_one_of_none() -> None:
    with pytest.raises(VersionMismatch, match="type 6"):
        decode_tensor(pb.Tensor(type=6, shape=[1], data=bytes(4)))  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("size", [0, 4, 7, 9, 12])
def test_scales_come_one_a_row_or_not_at_all(wire: Wire, size: int) -> None:
    tensor = encode_tensor(np.ones((2, 3), np.float32), wire)
    if size != len(tensor.scales):
        tensor.scales = bytes(size)
        with pytest.raises(InputError, match=f"cannot have {size} bytes of scales"):
            decode_tensor(tensor)


def test_scales_count_as_bytes_of_the_message() -> None:
    with pytest.raises(InputError, match="too long"):
        decode_tensor(pb.Tensor(type="INT8", shape=[CHUNK // 4, 1], data=bytes(CHUNK // 4), scales=bytes(CHUNK)))


@pytest.mark.parametrize("wire", LEVELS)
@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (-1.0, "negative or not finite"),
        (np.nan, "negative or not finite"),
        (np.inf, "negative or not finite"),
        (LARGEST_FLOAT32, "values that are not finite"),  # the scale is finite, what it makes is not
    ],
)
def test_scales_that_are_no_size_of_a_step_are_refused(wire: Wire, scale: float, words: str) -> None:
    tensor = encode_tensor(np.eye(3, dtype=np.float32), wire)
    tensor.scales = tensor.scales[:8] + np.float32(scale).tobytes()
    with pytest.raises(InputError, match=words):
        decode_tensor(tensor)


@pytest.mark.parametrize("half", range(1, 16))
def test_the_half_byte_that_fills_a_row_is_zero(half: int) -> None:
    tensor = encode_tensor(np.ones((2, 3), np.float32), Wire.INT4)
    tensor.data = tensor.data[:-1] + bytes([tensor.data[-1] | half << 4])
    with pytest.raises(InputError, match="half byte of zero"):
        decode_tensor(tensor)


@pytest.mark.threat("tensors")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_refused(value: float, dtype: Any) -> None:
    kind = "BFLOAT16" if dtype is ml_dtypes.bfloat16 else np.dtype(dtype).name.upper()
    values = np.zeros((3, 4), dtype)
    values[1, 2] = value
    with pytest.raises(InputError, match="not finite"):
        decode_tensor(pb.Tensor(type=kind, shape=[3, 4], data=values.tobytes()))


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_sent(wire: Wire, value: float) -> None:
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = value
    with pytest.raises(InputError, match="not finite; the model"):
        encode_tensor(values, wire)


@pytest.mark.parametrize(
    ("wire", "largest", "advice"),
    [
        (Wire.FLOAT16, 65504.0, "send bf16"),
        (Wire.BFLOAT16, LARGEST_BFLOAT16, "send fp32"),
        (Wire.INT8, LARGEST_BFLOAT16, "send fp32"),
        (Wire.INT4, LARGEST_BFLOAT16, "send fp32"),
    ],
)
def test_values_that_a_format_cannot_hold_are_not_sent(wire: Wire, largest: float, advice: str) -> None:
    values = np.array([[1.0, -largest]], np.float32)
    assert np.allclose(through(values, wire)[0, 1], -largest, rtol=1e-6)
    with pytest.raises(InputError, match=advice):
        encode_tensor(np.nextafter(values, np.float32(-np.inf)), wire)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.complex64, object])
def test_other_types_are_not_sent(dtype: Any) -> None:
    with pytest.raises(TypeError):
        encode_tensor(np.zeros((1, 2), dtype))


@pytest.mark.threat("tensors")
@pytest.mark.parametrize("wire", Wire)
def test_a_whole_chunk_is_taken_in_bounded_memory(wire: Wire) -> None:
    width = 1024
    count = CHUNK // bytes_per_row(wire, width)
    tensor = encode_tensor(np.ones((count, width), np.float32), wire)
    tracemalloc.start()
    try:
        assert np.allclose(decode_tensor(tensor), 1)
        assert tracemalloc.get_traced_memory()[1] < 32 * CHUNK
    finally:
        tracemalloc.stop()


@st.composite
def damaged(draw: st.DrawFn) -> pb.Tensor:
    """A good tensor with one to three things changed: a dimension, some bytes, a length, or its type."""
    tensor = encode_tensor(draw(floats(65504)), draw(formats))
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["type", "shape", "data", "scales"])):
            case "type":
                tensor.type = draw(st.integers(0, 6))  # type: ignore[assignment]
            case "shape":
                tensor.shape[:] = draw(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)), max_size=6))
            case name:
                content = bytearray(getattr(tensor, name))
                start = draw(st.integers(0, len(content)))
                content[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
                setattr(tensor, name, bytes(content))
    return tensor


noise = st.builds(
    lambda kind, shape, data, scales: pb.Tensor(type=kind, shape=shape, data=data, scales=scales),
    st.integers(0, 6),
    st.lists(st.integers(0, 4), max_size=4),
    st.binary(max_size=32),
    st.binary(max_size=16),
)


@st.composite
def plausible(draw: st.DrawFn) -> pb.Tensor:
    """The lengths are right; the bytes are anything."""
    wire, count, width = draw(formats), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    scales = draw(st.binary(min_size=4 * count, max_size=4 * count)) if wire in LEVELS else b""
    size = count * bytes_per_row(wire, width) - len(scales)
    data = draw(st.binary(min_size=size, max_size=size))
    return pb.Tensor(type=wire.name, shape=[count, width], data=data, scales=scales)


@pytest.mark.threat("tensors")
@settings(max_examples=1000)
@given(st.one_of(damaged(), noise, plausible()))
def test_whatever_comes_becomes_finite_values_or_an_input_error(tensor: pb.Tensor) -> None:
    try:
        values = decode_tensor(tensor)
    except (InputError, VersionMismatch):
        return
    assert values.dtype == np.float32
    assert values.shape == tuple(tensor.shape)
    assert np.isfinite(values).all()
    assert values.nbytes <= 8 * len(tensor.data)
