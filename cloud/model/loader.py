"""A target's model as transformers loads it: whole, or only the layers that a worker runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
from transformers.utils.logging import disable_progress_bar

from cutline.cloud.model import vision
from cutline.cloud.model.tensor_parallel import divide, unwrap_shards
from cutline.errors import BundleError
from cutline.models.bundle import Bundle
from cutline.models.families import Family


def load_model(
    bundle: Bundle,
    layers: Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    mesh: DeviceMesh | None = None,
) -> Any:
    """The transformers model of a target's bundle, from its verified files alone. Raises BundleError.

    With `layers`, names on its line that follow each other, only their weights are read; the rest cannot be run.
    Weights become `dtype`, or stay as they are stored. With a `mesh` only this rank's part of the decoder's layers is
    read.
    """
    if bundle.manifest.role != "target":
        raise BundleError(f"{bundle.path} holds a {bundle.manifest.role}; a worker needs a target's bundle")
    disable_progress_bar()
    manifest = bundle.manifest
    wanted = manifest.line.layers if layers is None else tuple(layers)
    complete = wanted == manifest.line.layers and mesh is None and not manifest.family.parts.unused
    try:
        config = AutoConfig.from_pretrained(bundle.path, local_files_only=True, trust_remote_code=False)
        whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        kind = whole if complete else _part(whole, manifest.family, wanted, mesh)
        model, found = kind.from_pretrained(
            bundle.path, local_files_only=True, use_safetensors=True, dtype=dtype or "auto", output_loading_info=True
        )
    except (KeyError, OSError, SafetensorError, ValueError) as error:  # of a config of another kind, or weights of none
        reason = str(error).strip().partition("\n")[0]
        raise BundleError(f"the model in {bundle.path} does not load ({reason}); export the bundle again") from None
    # transformers fills a weight that is missing with random numbers and a warning.
    if missing := sorted(found["missing_keys"]):
        raise BundleError(f"the weights in {bundle.path} lack {missing[0]}; export the bundle again")
    if mesh is not None:
        unwrap_shards(model)
    return model.eval().requires_grad_(False)


def _part(whole: Any, family: Family, layers: Sequence[str], mesh: DeviceMesh | None) -> Any:
    """The class `whole` without the modules that `layers` do not need: no weights are read for what is not there.

    With a `mesh`, what is left of the decoder's layers is divided.
    """

    class Part(whole):  # type: ignore[misc]
        # The file has more weights than this part names, which is no mistake.
        _keys_to_ignore_on_load_unexpected = [r"."]  # noqa: RUF012 (transformers' own attribute)

        all_tied_weights_keys: dict[str, str]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            tied = bool(self.all_tied_weights_keys)  # the head's weights are the embeddings
            vision.prune(self.base_model, family, layers)
            parts = family.parts

            def leave_out(name: str) -> None:
                self.base_model.set_submodule(parts.of_decoder(name), nn.Identity())

            for index in range(len(parts.modules(self).layers)):
                if f"decoder.{index}" not in layers:
                    leave_out(f"{parts.layers}.{index}")
            for name in parts.giving if not any(one.startswith("decoder.") for one in layers) else ():
                leave_out(name)
            if "decoder.0" not in layers and not (tied and "head" in layers):
                leave_out(parts.embed)
            if "head" not in layers:
                if parts.norm is not None:
                    leave_out(parts.norm)
                self.set_output_embeddings(nn.Identity())
                self.all_tied_weights_keys.clear()
            if mesh is not None:
                divide(self, family, mesh)

    # By its class's name transformers looks up what the weights are called in a file, and by its module whose it is.
    Part.__name__, Part.__module__ = whole.__name__, whole.__module__
    return Part
