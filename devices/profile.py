"""Device profiles: what a device or a worker's machine can do, as its datasheets say or as it was measured.

A profile is a TOML file. Those that come with Cutline are in `boards/`, `gpus/` and `servers/` beside this module, each
figure with the document it is from; `cutline profile` measures one of the machine it runs on. In Python every figure is
in bytes, seconds, watts and operations a second. `docs/reference/profiles.md` describes the file.
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
Runtime = Literal["edge", "cloud"]  # ONNX Runtime, as the agent runs it; torch, as a worker runs it
Samples = tuple[tuple[int, float], ...]  # (how many, seconds), how many rising

CPU = "cpu"  # ONNX Runtime's provider of the documented install, and torch's device without a GPU
CUDA = "cuda"


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Operations a second of dense matrix products by dtype; None where no figure is known.

    fp32 always is: every machine runs it, and in it what is stored in a type that the machine does not multiply.
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
    """Measured seconds of the layers of one model (`model` is its bundle's identity), as one runtime runs them.

    `layers` maps a layer's name to samples (rows, seconds). Of `image`, `vision.*` and `connector` the rows are patches
    of one tile. Of `decoder.*` and `head` they are tokens of one session: 1, 8 and 64 on top of `context` tokens, and
    more (a prompt) on top of none. `pass_seconds` is what a pass costs beyond its layers; runtime "edge" has none, as
    there the first layer of a graph carries it. `sessions` (runtime "cloud") has samples (sessions, seconds) of one
    whole decoding pass, one token a session. `provider` is what ran them, as in DeviceProfile.
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
    """Measured seconds of a drafter: `vision_seconds` a tile, `prefill` (rows, seconds), `token_seconds` each.

    `provider` is what ran it, as in DeviceProfile.
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
    """What a machine can do; raises ValueError, naming the key, for figures that no machine can have.

    `date` is when it was measured, or the figures were looked up. `compute` has the rates that `provider` reaches: cpu
    is the processor, on which ONNX Runtime runs by the documented install, cuda a GPU. `accelerators` has the rates of
    other providers, by their names. `memory_bandwidth` is in bytes a second.
    `overhead_seconds` is what one call of a kernel or layer costs however small it is. `preprocess_seconds` is for one
    image, decoded and resized, `shrink_seconds` for making it small before it is uploaded; `message_seconds` for one
    message of the protocol there and back, both ends on this machine. `sustained` is the speed after a while of work as
    a share of the first second's, and `throttled` whether the system said that it held the clock back. `cores` are
    those that a measurement used.

    `documents` maps a key to the document of its figure; `notes` are for people. `missing` names what was looked for
    and is not there (a sensor, say): such a figure is None, never guessed.
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
        every = {"compute": self.compute} | {f"accelerators.{name}": one for name, one in self.accelerators.items()}
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
        """The machine as `provider` runs on it: its rates as `compute`, and only what was measured with it.

        Raises ProfileError where the profile knows no rates of it.
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
        """The measured table of the model of this identity, if there is one."""
        found = (table for table in self.tables if (table.model, table.runtime) == (model, runtime))
        return next(found, None)

    def drafter_table(self, model: str) -> DrafterTable | None:
        """The measured seconds of the drafter of this identity, if there are any."""
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


# A file's keys for figures with a unit: the attribute that each becomes, and what it is a quantity of.
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
    """The profile of a known name, or the one in a TOML file. Raises ProfileError, naming the file and the key."""
    known = _shipped()
    file = known.get(str(name_or_path), Path(name_or_path))
    try:
        if name_or_path == "":  # which is a path of this folder
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
    """The profile in a file's text. Raises ValueError, naming the key."""
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
    others = {name: rates(f"accelerators.{name}", one) for name, one in profile.accelerators.items()}
    rest = msgspec.to_builtins({key: value for key, value in fields.items() if value not in ((), {}, None)})
    rated = {"compute": rates("compute", profile.compute), "accelerators": others or None}
    return to_toml(head | figures | rest | rated)


def _operations(dtype: str) -> Quantity:
    return "OP/s" if dtype.startswith("int") else "FLOP/s"


def _shipped() -> dict[str, Path]:
    """The files that come with Cutline, by name."""
    room = Path(str(resources.files("cutline.devices")))
    return {file.stem: file for folder in ("boards", "gpus", "servers") for file in (room / folder).glob("*.toml")}
