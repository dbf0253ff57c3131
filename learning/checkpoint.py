"""Where training stands, in a file: it goes on from there after it was stopped, with the same steps as without.

The file is safetensors, with the place as its metadata, so that tensors and place are of one moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from cutline.core.storage.files import write_file

_PLACE = "place"


class CoursePlace(msgspec.Struct, frozen=True, kw_only=True):
    """The steps done of a stage, and the state of the random numbers."""

    stage: str
    steps: int
    random: dict[str, Any]


def save(
    file: Path, place: CoursePlace, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Keep `modules` by their names and the `optimizer`, whose parameters all have been stepped, at `place`."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in _own(module).items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_file(file, safetensors.torch.save(dense, metadata={_PLACE: msgspec.json.encode(place).decode()}))


def place_of(file: Path) -> CoursePlace | None:
    """Where training stands; None where it has not begun."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as kept:
        return msgspec.json.decode(kept.metadata()[_PLACE], type=CoursePlace)


def restore(file: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Bring back what `save` kept of the same modules; `optimizer` is left as new where none was kept."""
    tensors = safetensors.torch.load_file(file)
    for name, module in modules.items():
        prefix = name + "."
        kept = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        shapes = {key: value.shape for key, value in _own(module).items()}
        if {key: value.shape for key, value in kept.items()} != shapes:
            raise ValueError(f"{file} was kept of another model; take another --out")
        module.load_state_dict(kept, strict=False)  # tied weights were kept once
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = value
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of `rng`, whose numbers JSON holds as text: they are too long for it."""
    state = rng.bit_generator.state
    return {**state, "state": {key: str(value) for key, value in state["state"].items()}}


def set_random_state(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Go on where `random_state` was taken."""
    rng.bit_generator.state = {**state, "state": {key: int(value) for key, value in state["state"].items()}}


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, each once: tied weights are one."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor.detach()
    return own
