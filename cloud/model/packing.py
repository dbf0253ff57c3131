"""Weights in the layout in which a processor multiplies fastest, packed once when a model is loaded.

torch would pack a weight anew for every product, or have a library multiply that is slower on some processors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS = 16  # that a product is tuned for; any number may come


class PackedLinear(nn.Module):
    """What a `linear` does, with its weights in oneDNN's own layout; they are its only copy, if nobody else has one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, _ROWS)
        self._bias = linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (..., n, in) to rows (..., n, out)."""
        if torch.compiler.is_compiling():
            made: Tensor = torch.ops.cutline.linear(rows, self._packed, self._bias)
        else:
            made = _linear(rows, self._packed, self._bias)
        return made


def _linear(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return made


# torch's own compiler takes packed weights as constants alone, not as those of any layer.
torch.library.define("cutline::linear", "(Tensor rows, Tensor packed, Tensor? bias) -> Tensor")
torch.library.impl("cutline::linear", "default")(_linear)


@torch.library.register_fake("cutline::linear")  # type: ignore[untyped-decorator]
def _linear_shape(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return rows.new_empty(*rows.shape[:-1], packed.shape[0])


def pack(model: nn.Module, dtype: torch.dtype) -> None:
    """Pack every linear layer of `model`, which is on the processor, where torch can do so for `dtype`."""
    if not _takes(dtype):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))


def _takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    match dtype:
        case torch.float32:
            return True
        case torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case _:
            return False
