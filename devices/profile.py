"""Device profiles: the speed, memory and power of a device or a worker's machine, from datasheets or measured.

A profile is a TOML file. The shipped ones are in `boards/`, `gpus/` and `servers/` beside this module, each figure with
its source document; `cutline profile` measures one of the machine it runs on. In Python figures are in bytes, seconds,
watts and operations a second. `docs/reference/profiles.md` describes the file.
"""

from __future__ import annotations

import datetime
import itertools
import math
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from cutline.devices.figures import Figure, Quantity, plain, written
from cutline.devices.names import nearest
from cutline.devices.toml import from_toml, read_text, to_toml
from cutline.errors import ProfileError

Source = Literal["measured", "datasheet"]
Runtime = Literal["edge", "cloud"]  # ONNX Runtime in an agent, torch in a worker
Samples = tuple[tuple[int, float], ...]  # (count, seconds), by rising count

CPU = "cpu"  # ONNX Runtime's default provider, and torch's device without a GPU
CUDA = "cuda"


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Operations a second of dense matrix products by dtype; None if not known.

    fp32 is always known: every machine has it, and uses it for weights of a type that it cannot multiply.
    """

    fp32: float
    fp16: float | None = None
    bf16: float | None = None
    int8: float | None = None

    @property
    def known(self) -> dict[str, float]:
        """The rates that are known, by dtype."""
        return {name: rate for name in self.__struct_fields__ if (rate := getattr(self, name)) is not None}


class LayerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured seconds of one model's layers in one runtime; `model` is the identity of its bundle.

    `layers` maps a layer's name to samples (rows, seconds). The rows of `image`, `vision.*` and `connector` are patches
    of one tile. Those of `decoder.*` and `head` are tokens of one session: 1, 8 and 64 after `context` tokens, and more
    (a prompt) after none. `pass_seconds` is the cost of a pass in addition to its layers; runtime "edge" has 0, as it
    is included in a graph's first layer. `sessions` (runtime "cloud") has samples (sessions, seconds) of a decoding
    pass with one token a session. `provider` ran the layers, as in DeviceProfile.
    """

    model: str
    name: str
    runtime: Runtime
    dtype: str
    context: int
    layers: dict[str, Samples]
    provider: str = CPU
    pass_seconds: float = 0.0
    sessions: Samples = ()

    def __post_init__(self) -> None:
        for layer, samples in self.layers.items():
            _check_samples(f"layers.{layer}", samples)
        if not self.layers:
            raise ValueError("layers of a table are missing; give at least one")
        if self.sessions:
            _check_samples("sessions", self.sessions)
        _check("pass_seconds", self.pass_seconds, zero=True)
        _check("context", self.context, zero=True)


class DrafterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured seconds of a drafter: `vision_seconds` a tile, `prefill` (rows, seconds), `token_seconds` a token.

    `provider` ran it, as in DeviceProfile.
    """

    model: str
    name: str
    precision: str
    vision_seconds: float
    prefill: Samples
    token_seconds: float
    provider: str = CPU

    def __post_init__(self) -> None:
        _check("vision_seconds", self.vision_seconds, zero=True)
        _check_samples("prefill", self.prefill)
        _check("token_seconds", self.token_seconds)


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The figures of a machine. Raises ValueError, which names the key, for impossible ones.

    `date` is that of the measurement, or of looking the figures up. `compute` has the rates of `provider`: cpu is the
    processor, cuda a GPU. `accelerators` has the rates of other providers by name. `memory_bandwidth` is in bytes a
    second. `overhead_seconds` is the least time of one kernel or layer. `preprocess_seconds` is for decoding and
    resizing one image, `shrink_seconds` for shrinking it for the upload, `message_seconds` for one round trip of the
    protocol over loopback. `sustained` is the speed after some time under load as a share of that in the first second,
    and `throttled` whether the system reported throttling. `cores` is the number that a measurement used.

    `documents` maps a key to the document of its figure; `notes` are for people. `missing` names figures that could not
    be measured, for example without a sensor; they are None, never guessed.
    """

    name: str
    source: Source
    date: datetime.date
    memory_bytes: float
    memory_bandwidth: float
    compute: Compute
    provider: str = CPU
    accelerators: dict[str, Compute] = {}
    memory_free_bytes: float | None = None
    disk_free_bytes: float | None = None
    overhead_seconds: float | None = None
    preprocess_seconds: float | None = None
    shrink_seconds: float | None = None
    message_seconds: float | None = None
    idle_watts: float | None = None
    loaded_watts: float | None = None
    temperature_c: float | None = None
    sustained: float | None = None
    throttled: bool | None = None
    cores: int | None = None
    documents: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    tables: tuple[LayerTable, ...] = ()
    drafters: tuple[DrafterTable, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty; give one")
        if not self.name.isprintable():
            raise ValueError("name has characters that do not print; give another")
        for key in ("memory_bytes", "memory_bandwidth"):
            _check(key, getattr(self, key))
        if self.provider in self.accelerators:
            raise ValueError(f"accelerators has {self.provider}, whose rates stand in compute; leave one of them out")
        every = {"compute": self.compute} | {f"accelerators.{name}": rates for name, rates in self.accelerators.items()}
        for path, rates in every.items():
            for dtype, rate in rates.known.items():
                _check(f"{path}.{dtype}", rate)
        for key in ("preprocess_seconds", "shrink_seconds", "message_seconds", "loaded_watts", "sustained", "cores"):
            if (value := getattr(self, key)) is not None:
                _check(key, value)
        for key in ("memory_free_bytes", "disk_free_bytes", "overhead_seconds", "idle_watts"):
            if (value := getattr(self, key)) is not None:
                _check(key, value, zero=True)

    def on(self, provider: str) -> DeviceProfile:
        """The profile for `provider`: with its rates as `compute`, and only the tables that were measured with it.

        Raises ProfileError if the profile has no rates of it.
        """
        if provider == self.provider:
            compute = self.compute
        elif provider in self.accelerators:
            compute = self.accelerators[provider]
        else:
            known = ", ".join((self.provider, *self.accelerators))
            raise ProfileError(
                f"the profile {self.name} has no rates of the provider {provider}, only of {known}; give another "
                "profile, or with --provider the one that will run"
            )
        return msgspec.structs.replace(
            self,
            compute=compute,
            provider=provider,
            accelerators={},
            tables=tuple(table for table in self.tables if table.provider == provider or table.runtime == "cloud"),
            drafters=tuple(table for table in self.drafters if table.provider == provider),
        )

    def layer_table(self, model: str, runtime: Runtime) -> LayerTable | None:
        """The measured table of the model with this identity, if there is one."""
        found = (table for table in self.tables if (table.model, table.runtime) == (model, runtime))
        return next(found, None)

    def drafter_table(self, model: str) -> DrafterTable | None:
        """The measured seconds of the drafter with this identity, if there are any."""
        return next((table for table in self.drafters if table.model == model), None)


def _check(key: str, value: float, *, zero: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{key} is {value:g}; give a positive number")


def _check_samples(key: str, samples: Samples) -> None:
    counts = [count for count, _ in samples]
    if not counts or counts[0] < 1 or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"{key} is not a list of [how many, seconds] in rising order; measure it again")
    for _, seconds in samples:
        _check(key, seconds, zero=True)


# A file's keys for figures with a unit: the attribute and the quantity of each.
_FIGURES: dict[str, tuple[str, Quantity]] = {
    "memory": ("memory_bytes", "bytes"),
    "memory_free": ("memory_free_bytes", "bytes"),
    "memory_bandwidth": ("memory_bandwidth", "bytes/s"),
    "disk_free": ("disk_free_bytes", "bytes"),
    "overhead": ("overhead_seconds", "seconds"),
    "preprocess": ("preprocess_seconds", "seconds"),
    "shrink": ("shrink_seconds", "seconds"),
    "message": ("message_seconds", "seconds"),
    "idle_power": ("idle_watts", "watts"),
    "loaded_power": ("loaded_watts", "watts"),
    "temperature": ("temperature_c", "degrees"),
}


def profile_names() -> tuple[str, ...]:
    """The names of the profiles that come with Cutline."""
    return tuple(sorted(_shipped()))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The profile of a known name or in a TOML file. Raises ProfileError, which names the file and the key."""
    known = _shipped()
    file = known.get(str(name_or_path), Path(name_or_path))
    try:
        if name_or_path == "":  # as a path it would be the current folder
            raise FileNotFoundError
        return parse_profile(read_text(file))
    except FileNotFoundError:
        raise ProfileError(
            f"no device profile {str(name_or_path)!r}{nearest(str(name_or_path), known)}; known are "
            f"{', '.join(sorted(known))}, or give the path of a TOML file"
        ) from None
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # too long, not UTF-8, not TOML, not a profile
        raise ProfileError(f"{file}: {error}") from None


def parse_profile(text: str) -> DeviceProfile:
    """The profile in a file's text. Raises ValueError, which names the key."""
    fields: dict[str, Any] = from_toml(text)
    attributes = {attribute for attribute, _ in _FIGURES.values()}
    keys = {*DeviceProfile.__struct_fields__} - attributes - {"documents"} | _FIGURES.keys()
    if unknown := fields.keys() - keys:
        raise ValueError(f"{min(unknown)} is not a key of a profile; there are {', '.join(sorted(keys))}")
    for key in ("name", "source", "date", "memory", "memory_bandwidth", "compute"):
        if key not in fields:
            raise ValueError(f"{key} is missing; give it")
    documents: dict[str, str] = {}

    def take(key: str, content: Any, quantity: Quantity) -> float:
        try:
            figure = msgspec.convert(content, Figure)
        except msgspec.ValidationError as error:
            raise ValueError(f"{key} is not {{ value = ..., unit = ..., document = ... }}: {error}") from None
        if figure.document is not None:
            documents[key] = figure.document
        elif fields["source"] == "datasheet":
            raise ValueError(f"{key} names no document; a datasheet's figure needs one")
        return plain(figure, quantity, key=key)

    for key, (attribute, quantity) in _FIGURES.items():
        if key in fields:
            fields[attribute] = take(key, fields.pop(key), quantity)

    def rates(path: str, content: Any) -> dict[str, float]:
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a table; write [{path}] and a rate a line, such as fp32 = {{ ... }}")
        if "fp32" not in content:
            raise ValueError(f"{path}.fp32 is missing; give it: what a machine does not multiply in, it runs in fp32")
        return {dtype: take(f"{path}.{dtype}", rate, _operations(dtype)) for dtype, rate in content.items()}

    fields["compute"] = rates("compute", fields["compute"])
    others = fields.get("accelerators", {})
    if not isinstance(others, dict):
        raise ValueError("accelerators is not a table; write [accelerators.cuda] and a rate a line")
    fields["accelerators"] = {name: rates(f"accelerators.{name}", content) for name, content in others.items()}
    return msgspec.convert(fields | {"documents": documents}, DeviceProfile)


def profile_to_toml(profile: DeviceProfile) -> str:
    """The text of a file that reads back as `profile`."""
    fields = msgspec.structs.asdict(profile)
    documents = fields.pop("documents")
    figures = {}
    for key, (attribute, quantity) in _FIGURES.items():
        if (value := fields.pop(attribute)) is not None:
            figures[key] = msgspec.to_builtins(written(value, quantity, document=documents.get(key)))

    def rates(path: str, compute: Compute) -> dict[str, Any]:
        return {
            dtype: msgspec.to_builtins(written(rate, _operations(dtype), document=documents.get(f"{path}.{dtype}")))
            for dtype, rate in compute.known.items()
        }

    head = {key: fields.pop(key) for key in ("name", "source", "date", "provider")}
    del fields["compute"], fields["accelerators"]
    others = {name: rates(f"accelerators.{name}", compute) for name, compute in profile.accelerators.items()}
    rest = msgspec.to_builtins({key: value for key, value in fields.items() if value not in ((), {}, None)})
    rated = {"compute": rates("compute", profile.compute), "accelerators": others or None}
    return to_toml(head | figures | rest | rated)


def _operations(dtype: str) -> Quantity:
    return "OP/s" if dtype.startswith("int") else "FLOP/s"


def _shipped() -> dict[str, Path]:
    """The files of the shipped profiles by name."""
    package = Path(str(resources.files("cutline.devices")))
    return {file.stem: file for folder in ("boards", "gpus", "servers") for file in (package / folder).glob("*.toml")}
