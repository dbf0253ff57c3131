"""The devices that torch has here, for the commands of a worker."""

from __future__ import annotations

import logging
import platform

import torch
from safetensors import SafetensorError, safe_open

from cutline.devices.machine.memory import measure_memory
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle

log = logging.getLogger(__name__)

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors calls them


def free_memory(device: str) -> int:
    """Bytes that can be had on `device` now."""
    free: int = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else measure_memory().free
    return free


def has_bf16() -> bool:
    """Whether this machine's processor multiplies in bf16; torch does so by fp32 and rounding where it does not."""
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def stored_dtype(bundle: Bundle) -> torch.dtype:
    """The type of a target's weights as the bundle stores them. Raises BundleError."""
    try:
        for path in sorted(bundle.path.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (it is no dictionary)
                    if (found := _STORED.get(weights.get_slice(name).get_dtype())) is not None:
                        return found
    except (OSError, SafetensorError) as error:
        raise BundleError(f"the weights in {bundle.path} cannot be read ({error}); export the bundle again") from None
    raise BundleError(f"{bundle.path} has no weights; export the bundle again")


def compute_dtype(bundle: Bundle, asked: torch.dtype | None, device: str) -> torch.dtype:
    """What to compute a target with: as `asked`, or as its weights are stored; but on a processor what it is fast in.

    Without bf16 units weights of bf16 are widened to fp32, which holds each of them to the last bit. What is asked for
    is done all the same, and said to be slow. Raises BundleError.
    """
    slow = device == "cpu" and not has_bf16()
    if asked is not None:
        if slow and asked is torch.bfloat16:
            log.warning("this processor has no bf16 units: bf16 is two to four times slower on it than --dtype fp32")
        return asked
    stored = stored_dtype(bundle)
    if slow and stored is torch.bfloat16:
        log.warning(
            "the weights are bf16, and this processor has no units for it: computing in fp32, in twice the memory; "
            "--dtype bf16 computes in bf16, two to four times slower"
        )
        return torch.float32
    return stored


def check_device(device: str) -> None:
    """That torch can run on `device`: cpu, cuda, cuda:1, ... Raises InputError, naming those that it can."""
    cards = torch.cuda.device_count()
    available = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{card}" for card in range(cards))]
    if device not in available:
        raise InputError(f"--device {device} is not here; choose {', '.join(available)}")
