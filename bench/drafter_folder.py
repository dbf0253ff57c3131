"""The Hugging Face folder of the demo's drafter, out of its bundle: `python -m cutline.bench.drafter_folder OUT`.

What was trained is not shipped, and takes hours to make. The bundle's weights are the same but for the decoder's, which
are int8 there: quantized again they become what they were.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration

from cutline.core.storage.files import write_file
from cutline.demo.bundles import DRAFTER
from cutline.demo.publish import write_processor
from cutline.demo.shapes import SHAPES
from cutline.models.bundle import EMBEDDINGS, Bundle, span_file
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER

ZERO = 128  # of weights of eight bits

Weights = dict[str, NDArray[Any]]


def weights_of(graph: Path) -> tuple[onnx.GraphProto, Weights]:
    """A graph, and its weights by their names."""
    model = onnx.load(str(graph))
    return model.graph, {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def decoder_weights(graph: Path) -> Weights:
    """The decoder's weights by transformers' names."""
    nodes, found = weights_of(graph)
    made: Weights = {}
    for node in nodes.node:
        if node.op_type != "MatMulNBits":
            continue
        blocks, scales = found[node.input[1]], found[node.input[2]]
        columns = next(one.i for one in node.attribute if one.name == "K")
        dense = (blocks.astype(np.float32) - ZERO) * scales.reshape(*blocks.shape[:2], 1)
        dense = dense.reshape(len(blocks), -1)[:, :columns]
        name = node.input[1].removesuffix(".MatMul.weight_Q8").replace(".attn.", ".self_attn.")
        if name.endswith("qkv_proj"):
            for part, rows in zip("qkv", np.split(dense, 3), strict=True):
                made[f"{name.replace('qkv_proj', f'{part}_proj')}.weight"] = rows
        elif name != "lm_head":  # its weights are those of the embeddings
            made[f"{name}.weight"] = dense
    norms = {name: found[name] for name in found if name.endswith("layernorm.weight")}
    last = next(name for name in norms if "final_norm" in name)
    made |= {name: norm for name, norm in norms.items() if name != last} | {"model.norm.weight": norms[last]}
    return {f"text_{name}": weight for name, weight in made.items()}


def vision_weights(graph: Path) -> Weights:
    """The weights of vision tower and connector by transformers' names."""
    nodes, found = weights_of(graph)
    made = {name: weight for name, weight in found.items() if name.startswith(("image.0.", "layers.", "connector.0."))}
    makers = {node.output[0]: node for node in nodes.node}
    for node in nodes.node:  # a product has no name of its own, and that of the bias that is added to it
        bias = next((name for name in node.input if name in made and name.endswith("bias")), None)
        product = next((makers[name] for name in node.input if name in makers), None)
        if node.op_type == "Add" and bias is not None and product is not None and product.op_type == "MatMul":
            made[bias.removesuffix("bias") + "weight"] = found[product.input[1]].T
    matrices = [node.input[1] for node in nodes.node if node.op_type == "MatMul"]
    renamed = {
        "image.0.": "vision_model.embeddings.",
        "layers.": "vision_model.encoder.layers.",
        "connector.0.": "vision_model.post_layernorm.",
    }
    named = {
        new + name.removeprefix(old): weight
        for name, weight in made.items()
        for old, new in renamed.items()
        if name.startswith(old)
    }
    return named | {"connector.modality_projection.proj.weight": found[matrices[-1]].T}


def write_folder(out: Path) -> None:
    """Write the folder."""
    bundle = Bundle.open(DRAFTER)
    tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
    model = SmolVLMForConditionalGeneration(SHAPES["drafter"].config(tokenizer.get_vocab()))
    weights = {
        "text_model.embed_tokens.weight": load_file(bundle.file(EMBEDDINGS))["embeddings"],
        **decoder_weights(bundle.file("decoder.onnx")),
        **vision_weights(bundle.file(span_file("decoder.0"))),
    }
    tensors = {f"model.{name}": torch.from_numpy(weight.copy()) for name, weight in weights.items()}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    assert not unknown, unknown
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    model.save_pretrained(out)
    write_processor(out)
    for name in (TOKENIZER, TEMPLATE):
        write_file(out / name, bundle.file(name).read_bytes())


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    write_folder(parser.parse_args().out)


if __name__ == "__main__":
    main()
