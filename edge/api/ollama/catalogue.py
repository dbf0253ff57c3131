"""What Ollama's API lists of models: here the agent's one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from cutline.edge.api.handler import LATEST
from cutline.models.bundle import Manifest

_BITS = {"fp32": 32, "int8": 8, "int4": 4}
_FOREVER = timedelta(days=36525)  # until a model is unloaded: it stays as long as the agent does


class OllamaVersion(msgspec.Struct, frozen=True):
    """The version of the agent."""

    version: str


class OllamaDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of model it is. `format` says what runs it."""

    parent_model: str = ""
    format: Literal["onnx"] = "onnx"
    family: str
    families: tuple[str, ...]
    parameter_size: str
    quantization_level: str


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model. `size` is of its weights, in bytes, but for the table of embeddings; `digest` its identity."""

    name: str
    model: str
    modified_at: datetime
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct, frozen=True):
    """The models that are here."""

    models: tuple[OllamaModel, ...]


class OllamaRunning(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded; on a device that has no memory of a GPU's own, `size_vram` is 0."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: datetime
    size_vram: int = 0
    context_length: int


class OllamaLoaded(msgspec.Struct, frozen=True):
    """The models that are loaded."""

    models: tuple[OllamaRunning, ...]


class OllamaShown(msgspec.Struct, frozen=True, kw_only=True):
    """All about a model. `model_info` has Ollama's names, `FAMILY.context_length` and others."""

    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: tuple[Literal["completion", "vision", "tools"], ...]
    modified_at: datetime


class OllamaNamed(msgspec.Struct, frozen=True, kw_only=True):
    """A request about a model, by its name; older clients say `name`. The rest changes nothing here."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    verbose: bool | None = None
    insecure: bool | None = None


class OllamaStatus(msgspec.Struct, frozen=True):
    """How far a pull is: done, since what can be pulled is here."""

    status: Literal["success"] = "success"


def listed(manifest: Manifest, since: datetime) -> OllamaModel:
    """The model of the drafter `manifest`, which is served `since` then."""
    name = manifest.name + LATEST
    return OllamaModel(
        name=name,
        model=name,
        modified_at=since,
        size=sum(manifest.parameters) * _BITS[manifest.precision] // 8,
        digest=manifest.identity,
        details=_details(manifest),
    )


def loaded(manifest: Manifest, since: datetime) -> OllamaRunning:
    """Likewise, as it runs."""
    known = listed(manifest, since)
    return OllamaRunning(
        name=known.name,
        model=known.model,
        size=known.size,
        digest=known.digest,
        details=known.details,
        expires_at=datetime.now(UTC) + _FOREVER,
        context_length=manifest.decoder.context,
    )


def shown(manifest: Manifest, since: datetime, *, tools: bool) -> OllamaShown:
    """Likewise, all about it, and whether it calls `tools`."""
    family, decoder = _family(manifest), manifest.decoder
    sizes = {
        "block_count": decoder.layers,
        "context_length": decoder.context,
        "embedding_length": decoder.width,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
        "vocab_size": decoder.vocabulary,
        "vision.block_count": manifest.line.vision,
        "vision.embedding_length": manifest.vision.width,
    }
    info: dict[str, str | int] = {
        "general.architecture": family,
        "general.basename": manifest.name,
        "general.parameter_count": sum(manifest.parameters),
        **{f"{family}.{name}": size for name, size in sizes.items()},
    }
    return OllamaShown(
        details=_details(manifest),
        model_info=info,
        capabilities=("completion", "vision", "tools") if tools else ("completion", "vision"),
        modified_at=since,
    )


def _details(manifest: Manifest) -> OllamaDetails:
    family = _family(manifest)
    return OllamaDetails(
        family=family,
        families=(family,),
        parameter_size=_rounded(sum(manifest.parameters)),
        quantization_level=manifest.precision,
    )


def _family(manifest: Manifest) -> str:
    return type(manifest.family).__name__.lower()


def _rounded(count: int) -> str:
    """A number of parameters as people say it: 1.2B, 494.03M, 238K."""
    for unit, size, digits in (("B", 1e9, 1), ("M", 1e6, 2), ("K", 1e3, 0)):
        if count >= size:
            return f"{count / size:.{digits}f}{unit}"
    return str(count)
