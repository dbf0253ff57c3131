"""Tensors: whatever numpy holds comes back, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cutline.errors import InputError
from cutline.protos.tensors import CHUNK, decode_tensor, encode_tensor
from cutline.protos.v1 import worker_pb2 as pb

F32, F16 = pb.Tensor.FLOAT32, pb.Tensor.FLOAT16


@given(
    st.sampled_from(["<f4", ">f4", "<f2", ">f2"]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(max_dims=4, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )
)
def test_an_array_comes_back_bit_by_bit(array: np.ndarray[Any, Any]) -> None:
    for given_array in (array, array.T):  # whatever its order in memory
        tensor = pb.Tensor.FromString(encode_tensor(given_array).SerializeToString())
        back = decode_tensor(tensor)
        assert back.dtype == given_array.dtype.newbyteorder("<")
        assert back.shape == given_array.shape
        assert np.array_equal(back, given_array)
        assert tensor.data == given_array.astype(back.dtype).tobytes()  # little-endian, row by row


def test_the_bytes_are_those_of_the_standard() -> None:
    assert encode_tensor(np.array([1.0, -2.0], np.float32)).data.hex() == "0000803f" + "000000c0"
    assert encode_tensor(np.array([1.0, -2.0], np.float16)).data.hex() == "003c" + "00c0"


@pytest.mark.parametrize(
    ("kind", "shape", "data", "words"),
    [
        (pb.Tensor.UNKNOWN, [1], bytes(4), "type 0"),
        (3, [1], bytes(4), "type 3"),
        (F32, [2, 3], bytes(23), "cannot have 23 bytes"),
        (F32, [2, 3], bytes(25), "cannot have 25 bytes"),
        (F16, [2, 3], bytes(24), "cannot have 24 bytes"),
        (F32, [2**32 - 1] * 4, bytes(4), "cannot have 4 bytes"),
        (F32, [2**31, 2], b"", "cannot have 0 bytes"),  # 0 bytes modulo 2**32
        (F32, [], bytes(4), "1 to 4 dimensions"),
        (F32, [1, 1, 1, 1, 1], bytes(4), "1 to 4 dimensions"),
        (F32, [0, 4], b"", "none empty"),
        (F32, [CHUNK // 4 + 1], bytes(CHUNK + 4), "too long"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(kind: Any, shape: list[int], data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_tensor(pb.Tensor(type=kind, shape=shape, data=data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_finite_are_refused(value: float, dtype: Any) -> None:
    array = np.zeros((3, 4), dtype)
    array[1, 2] = value
    with pytest.raises(InputError, match="not finite"):
        decode_tensor(encode_tensor(array))


def test_a_whole_chunk_is_taken() -> None:
    assert decode_tensor(encode_tensor(np.ones((CHUNK // 8, 2), np.float32))).sum() == CHUNK // 4


def test_other_types_are_not_sent() -> None:
    for dtype in (np.float64, np.int32, np.int8, object):
        with pytest.raises(KeyError):
            encode_tensor(np.zeros(2, dtype))
