"""A decoder's weights, quantized one after another: as ONNX Runtime's quantizer makes them of the whole graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from cutline.models.bundle import Precision
from cutline.models.export import decoder
from cutline.models.export.quiet import quiet
from cutline.models.export.source import read_source
from cutline.testing.models.small_models import SMALL

BITS: dict[Precision, int] = {"int4": 4, "int8": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small")
    SMALL["qwen2-vl"].write(made)
    return made


@pytest.mark.parametrize("precision", list(BITS))
def test_weights_quantized_alone_are_those_of_the_whole_graph(
    folder: Path, tmp_path: Path, precision: Precision
) -> None:
    source = read_source(folder, dtype=torch.float32)
    precisions: tuple[Precision, ...] = ("fp32", precision)
    for each in precisions:
        (tmp_path / each).mkdir()
        path = tmp_path / each / "decoder.onnx"
        graph = decoder.build(source.model, source.family, source.decoder, path, each, head=True)
        onnx.save(graph, path)
    alone = onnx.load(tmp_path / precision / "decoder.onnx")
    with quiet():
        quantizer = MatMulNBitsQuantizer(
            onnx.load(tmp_path / "fp32" / "decoder.onnx"), bits=BITS[precision], block_size=32, is_symmetric=True
        )
        quantizer.process()
    whole = quantizer.model.model
    nodes = [[(node.op_type, *node.output) for node in one.graph.node] for one in (alone, whole)]
    assert nodes[0] == nodes[1]
    weights = [{one.name: numpy_helper.to_array(one) for one in graph.graph.initializer} for graph in (alone, whole)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1][name])
    kinds = {node.op_type for node in alone.graph.node}
    assert "MatMulNBits" in kinds
    assert "MatMul" not in kinds
