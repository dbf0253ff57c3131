"""Tensor parallel: one target on several devices, each of which has its part of every layer of the decoder.

Each device has a process, a rank. Rank 0 is the worker: it has the tower, the embeddings and the head, alone, and tells
the others each pass in plain tensors: header (kind and five counts), numbers, rows. All of them run the pass through
their part of the layers: some of the heads, with the keys and values of those, and a slice of the MLP. What the parts
make is summed twice a layer, and so the same everywhere.

Which weights are divided how is what transformers' own plan for the model says; each rank reads its part alone.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import AutoConfig

from cutline.cloud.model.batch import Stretch
from cutline.errors import BundleError, InputError, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.models.families import Family
from cutline.models.families.layer_state import KEYS_VALUES

PATIENCE = timedelta(seconds=60)  # that a rank may keep the others waiting within a pass
_FOR_EVER = timedelta(days=365)  # for a pass, and for weights to be read; who is gone is noticed at once
_STOP, _PASS, _RESUME = range(3)
_WHOLE = ("replicated_with_grad_allreduce",)  # styles of what every rank has: norms of a head's width
_HEADER = 6  # numbers
_LINE = 5  # numbers of a stretch: where it enters, rows, slot, start, and how many blocks its prompt has


class RankLost(WorkerFailed):
    """A rank ended, or the ranks are not in step any more: none of them can go on."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What the decoder's layers need to know of a pass.

    `stretches` of `rows` (n, streams * width), whose places are at `positions` (axes, n), enter at the layers
    `entries`: in ascending order, one a stretch.
    """

    entries: Sequence[int]
    stretches: Sequence[Stretch]
    positions: NDArray[np.int64]
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Resume:
    """A session begins in `slot` after the first `count` positions of what `source` holds."""

    slot: int
    source: int
    count: int


def check_ranks(bundle: Bundle, count: int) -> None:
    """That `count` ranks can divide a target's layers. Raises InputError, naming the counts that can."""
    spec, family = bundle.manifest.decoder, bundle.manifest.family
    if any(family.keeps(layer) != KEYS_VALUES or family.decoding(layer) for layer in range(spec.layers)):
        raise InputError(
            f"{bundle.path} has layers of its own kind, which devices do not share; leave out --tensor-parallel"
        )
    config = AutoConfig.from_pretrained(bundle.path, local_files_only=True, trust_remote_code=False)
    width = config.get_text_config().intermediate_size
    common = math.gcd(spec.heads, spec.kv_heads, width)
    if common % count:
        fitting = [str(other) for other in range(2, common + 1) if common % other == 0]
        raise InputError(
            f"{count} devices cannot divide {spec.heads} heads, {spec.kv_heads} of keys and values and an MLP "
            f"{width} wide; {', '.join(fitting) or 'no number of them'} can"
        )


class RankGroup:
    """All ranks, as the one with number `rank` of `count` sees them; one at a time in a process.

    Raises RankLost where another one is gone.
    """

    def __init__(self, store: Any, *, rank: int, count: int, device: str) -> None:
        """Waits until all are there; they meet in torch's `store`, and talk by this machine's own addresses alone."""
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)
        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        self.rank, self.count = rank, count
        self._shares_memory = device == "cpu"
        with _noticing():
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
            self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
            if rank:
                self._control.set_timeout(_FOR_EVER)
            self._loading = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._loading.set_timeout(_FOR_EVER)
            # Of the processor whatever the device: it says where weights are cut, and nothing is sent over it.
            self.mesh: DeviceMesh = init_device_mesh("cpu", (count,))

    def least(self, free: int) -> int:
        """The fewest bytes that any rank has `free`, of its own; when all have come so far."""
        found = torch.tensor([free])
        with _noticing():
            dist.all_reduce(found, dist.ReduceOp.MIN, group=self._loading)
        return int(found) // self.count if self._shares_memory else int(found)

    def wait(self) -> None:
        """Until all have come so far."""
        self.least(0)

    def tell(self, told: Pass | Resume | None) -> None:
        """To the others, which all `hear` it; None is the last that they are told."""
        with _noticing():
            match told:
                case Pass(entries, stretches, positions, rows):
                    blocks = [edge for one in stretches for block in one.blocks for edge in block]
                    self._send(_PASS, len(entries), *positions.shape, rows.shape[1], len(blocks))
                    lines = [
                        (at, one.count, one.slot, one.start, len(one.blocks))
                        for at, one in zip(entries, stretches, strict=True)
                    ]
                    numbers = torch.tensor([*np.ravel(lines), *positions.flat, *blocks])
                    dist.broadcast(numbers, 0)
                    dist.broadcast(rows, 0)
                case Resume(slot, source, count):
                    self._send(_RESUME, slot, source, count, 0, 0)
                case None:
                    self._send(_STOP, 0, 0, 0, 0, 0)

    def hear(self, like: Tensor) -> Pass | Resume | None:
        """What rank 0 tells; rows are like `like` in type and place."""
        header = torch.empty(_HEADER, dtype=torch.int64)
        with _noticing():
            dist.broadcast(header, 0, group=self._control)
            kind, *counts = header.tolist()
            if kind == _STOP:
                return None
            if kind == _RESUME:
                return Resume(*counts[:3])
            sessions, axes, count, width, blocks = counts
            numbers = torch.empty(_LINE * sessions + axes * count + blocks, dtype=torch.int64)
            dist.broadcast(numbers, 0)
            rows = like.new_empty(count, width)
            dist.broadcast(rows, 0)
        lines, positions, edges = np.split(numbers.numpy(), np.cumsum([_LINE * sessions, axes * count]))
        pairs = iter(edges.reshape(-1, 2).tolist())
        entries, stretches, first = [], [], 0
        for entry, length, slot, start, held in lines.reshape(-1, _LINE).tolist():
            entries.append(entry)
            own = tuple((begin, behind) for begin, behind in islice(pairs, held))
            stretches.append(Stretch(first, first + length, slot, start, own))
            first += length
        return Pass(entries, stretches, positions.reshape(axes, count), rows)

    def close(self) -> None:
        """Leave. All do so, after the last word."""
        dist.destroy_process_group()

    def _send(self, *header: int) -> None:
        dist.broadcast(torch.tensor(header), 0, group=self._control)


@contextmanager
def in_step() -> Iterator[None]:
    """What all ranks do alike: who fails in it has left the others waiting in the middle. Raises RankLost."""
    try:
        yield
    except Exception as error:
        raise RankLost("the devices of the worker are not in step any more; start it again") from error


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no class for a peer that is gone
        raise RankLost("a device of the worker no longer answers; start it again") from error


class Summed(nn.Module):
    """A linear layer of which each rank has some of the inputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias: nn.Parameter | None = linear.bias
        self.linear = linear
        linear.register_parameter("bias", None)  # added once, not by every rank

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (..., in / ranks) to the sum (..., out) over the ranks."""
        made: Tensor = self.linear(rows)
        dist.all_reduce(made)
        return made if self.bias is None else made + self.bias


def divide(model: Any, family: Family, mesh: DeviceMesh) -> None:
    """Before the weights of a transformers `model` are read: mark what each rank reads of the decoder's layers.

    Raises BundleError where its plan divides a layer in a way that is not known here.
    """
    ours = {module for layer in family.parts.modules(model).layers for module in layer.modules()}
    divided = 0
    for name, module in model.named_modules():
        style = model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if module not in ours or style in (None, *_WHOLE):
            continue
        if style not in ("colwise", "rowwise") or not isinstance(module, nn.Linear):
            raise BundleError(f"{name} cannot be divided among devices as transformers plans it: {style}")
        divided += 1
        names = ("weight", "bias") if style == "colwise" else ("weight",)
        for parameter in names:
            if (whole := getattr(module, parameter)) is not None:
                # Of a weight (out, in); the loader reads what the mark leaves to this rank.
                marked = distribute_tensor(whole, mesh, [Shard(int(style == "rowwise"))], src_data_rank=None)
                setattr(module, parameter, nn.Parameter(marked, requires_grad=False))
    if not divided:
        raise BundleError(f"transformers has no plan of how to divide a {model.config.model_type} among devices")


def unwrap_shards(model: nn.Module) -> None:
    """Once they are read: what was marked becomes plain layers, which sum what they make where they must."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and isinstance(weight := child.weight, DTensor):
                for parameter, held in list(child.named_parameters()):
                    if isinstance(held, DTensor):
                        setattr(child, parameter, nn.Parameter(held.to_local(), requires_grad=False))
                if weight.placements == (Shard(1),):
                    setattr(parent, name, Summed(child))
