"""Shapes: the sizes of a model's parts, to plan for a model without its bundle.

`shapes.toml` beside this module has those of some published models, with their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from cutline.errors import InputError
from cutline.models.bundle import FORMAT, DecoderSpec, Manifest, Parameters, Precision, Role, VisionSpec, span_file
from cutline.models.families import DecodedFamily, family_from
from cutline.models.layerline import LayerLine

_MAX_BYTES = 1 << 20
SUFFIX = ".toml"


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model's sizes. `parameters` counts the weights of one layer of each kind, `source` says who published it.

    Layers of the tower or the decoder that are not alike have a number each. `dtype` is the type of its weights on a
    worker.
    """

    source: str
    dtype: Literal["fp32", "fp16", "bf16"] = "bf16"
    family: DecodedFamily
    line: LayerLine
    parameters: Mapping[str, Parameters | tuple[Parameters, ...]]
    vision: VisionSpec
    decoder: DecoderSpec

    def __post_init__(self) -> None:
        kinds = {layer.partition(".")[0] for layer in self.line.layers}
        if self.parameters.keys() != kinds:
            raise ValueError(f"`parameters` has {', '.join(self.parameters)}; give {', '.join(sorted(kinds))}")
        for kind, counted in self.parameters.items():
            layers = {"vision": self.line.vision, "decoder": self.line.decoder}.get(kind)
            if isinstance(counted, tuple) and len(counted) != layers:
                raise ValueError(f"`parameters` has {len(counted)} numbers for {kind}; give 1, or {layers or 1}")
        if self.line.decoder != self.decoder.layers:
            raise ValueError(f"`line` has {self.line.decoder} layers of the decoder, `decoder` {self.decoder.layers}")

    def _weights(self, layer: str) -> int:
        kind, _, index = layer.partition(".")
        counted = self.parameters[kind]
        return counted[int(index)] if isinstance(counted, tuple) else counted

    def manifest(self, name: str, *, role: Role, precision: Precision, target: str | None = None) -> Manifest:
        """The manifest that an export of such a model would have, with every graph and no weights."""
        cuts = dict.fromkeys(self.line.image_cuts[1:], "image") | dict.fromkeys(self.line.deep_cuts, "decoder.0")
        return Manifest(
            format=FORMAT,
            identity=f"shape {name}",  # not a bundle's, so that no measurements of a bundle apply
            name=name,
            role=role,
            precision=precision,
            family=self.family,
            line=self.line,
            parameters=tuple(map(self._weights, self.line.layers)),
            vision=self.vision,
            decoder=self.decoder,
            stop_tokens=(),
            image_token=0,
            target=target,
            files={span_file(cut, start): "" for cut, start in cuts.items()} if role == "target" else {},
        )


def known_shapes() -> dict[str, Shape]:
    """The shapes that come with Cutline, by name."""
    content = (resources.files("cutline.models") / "shapes.toml").read_bytes()
    shapes = msgspec.toml.decode(content, type=dict[str, dict[str, Any]])
    return {name: _shape(fields) for name, fields in shapes.items()}


def _shape(fields: dict[str, Any]) -> Shape:
    """A shape of what its file says. Raises ValueError."""
    family = fields.get("family")
    if not isinstance(family, dict):
        raise ValueError("it has no `family`")
    return msgspec.convert(fields | {"family": family_from(family)}, Shape)


def load_shape(name_or_path: str) -> Shape | None:
    """The shape of a known name or in a TOML file; None for anything else. Raises InputError."""
    if (known := known_shapes().get(name_or_path)) is not None:
        return known
    path = Path(name_or_path)
    if path.suffix != SUFFIX or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it is larger than 1 MiB")
        return _shape(msgspec.toml.decode(content, type=dict[str, Any]))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, or not a shape
        raise InputError(f"{path} is no shape of a model: {error}") from None
