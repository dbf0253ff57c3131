"""What `cutline plan` is given, read and checked: bundles, profiles, the question's sizes, the link."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec

from cutline.cli.planning.models import PlannedModels
from cutline.core.request import Mode
from cutline.demo.bundles import DRAFTER
from cutline.devices.link import MAX_MBPS, MAX_RTT_MS, MIN_MBPS, load_link
from cutline.devices.measurement.workload import photograph
from cutline.devices.profile import DeviceProfile, Runtime
from cutline.edge.inference.target_prefix import device_cuts
from cutline.errors import ImageError, InputError
from cutline.errors.extras import missing
from cutline.models.bundle import Manifest
from cutline.models.images import MAX_BYTES, decode_image
from cutline.partitioner.acceptance import FIRST_RATE
from cutline.partitioner.plan import Conditions, Objective, Space
from cutline.partitioner.roofline import Speed
from cutline.partitioner.setting import Asked, Setting, own_grids

PLOTS = (".svg", ".png", ".pdf")
CARD = "examples/card1.png"  # of the demo


def check_plot(path: Path) -> None:
    """That a plot can be drawn into `path`. Raises InputError."""
    if path.suffix not in PLOTS:
        raise InputError(f"--plot {path}: give a file that ends in {', '.join(PLOTS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: there is no such folder")
    try:  # now, rather than after the work
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise missing("--plot needs matplotlib", "demo") from None


def asked_of(models: PlannedModels, image: Path | None, *, prompt_tokens: int | None, answer_tokens: int) -> Asked:
    """The sizes of a question about `image`, or about one that fits the models. Raises InputError."""
    family, context = models.target.family, models.target.decoder.context
    data = _picture(models, image)
    picture = decode_image(data)
    grid = family.grid(picture.size)
    if prompt_tokens is None:
        prompt_tokens = models.prompt_tokens(grid)
    if prompt_tokens <= family.tokens(grid):
        raise InputError(
            f"--prompt-tokens is {prompt_tokens}, but the image alone has {family.tokens(grid)}; give more"
        )
    if answer_tokens < 1:
        raise InputError(f"--answer-tokens is {answer_tokens}; give 1 or more")
    if prompt_tokens + answer_tokens > context:
        raise InputError(f"{prompt_tokens} and {answer_tokens} tokens do not fit the model's context of {context}")
    return Asked(
        grids=(grid,),
        image_bytes=len(family.shrink(data, picture)),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        drafter_grids=own_grids(models.drafter, models.target, [picture.size]),
    )


def conditions_of(
    link: str, rtt_ms: float | None, uplink_mbps: float | None, *, queue_ms: float, acceptance: float | None
) -> Conditions:
    """The conditions of a link, with what was given in place of its own figures. Raises ProfileError, InputError."""
    changed = {
        "rtt": positive("--rtt-ms", rtt_ms, scale=1e-3, least=1e-3, most=MAX_RTT_MS),
        "uplink": positive("--uplink-mbps", uplink_mbps, scale=125_000, least=MIN_MBPS, most=MAX_MBPS),
    }
    queue = positive("--queue-ms", queue_ms or None, scale=1e-3, most=MAX_RTT_MS) or 0.0
    rate = FIRST_RATE if acceptance is None else share("--acceptance", acceptance)
    over = Conditions.over(load_link(link), queue=queue, acceptance=rate)
    return msgspec.structs.replace(over, **{name: value for name, value in changed.items() if value is not None})


def space_of(target: Manifest, mode: str | None) -> Space:
    """Every choice that the target's bundle allows, or those of one mode. Raises InputError."""
    cuts = ("image", *(cut for cut in device_cuts(target) if cut != "image"))
    if mode is None:
        return Space(cuts=cuts)
    if mode not in tuple(Mode):
        raise InputError(f"there is no mode {mode!r}; choose {', '.join(Mode)}")
    return Space(modes=(Mode(mode),), cuts=cuts)


def known_objective(option: str, name: str) -> Objective:
    """The objective of this name. Raises InputError."""
    known: tuple[Objective, ...] = get_args(Objective)
    if (one := next((objective for objective in known if objective == name), None)) is None:
        raise InputError(f"{option} {name!r} is none of {', '.join(known)}")
    return one


def known_cut(option: str, name: str | None, target: Manifest) -> str | None:
    """`name`, if it is a cut of the target or None. Raises InputError."""
    if name is not None and name not in target.line.cuts:
        raise InputError(f"{option} {name!r} is no cut of {target.name}; it has {', '.join(target.line.cuts)}")
    return name


def positive(
    option: str, value: float | None, *, scale: float = 1.0, least: float = 0.0, most: float = math.inf
) -> float | None:
    """`value` times `scale`, if it is None or a number above 0 from `least` to `most`. Raises InputError."""
    if value is not None and not (0 < value < math.inf and least <= value <= most):
        wanted = "above 0" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"{option} is {value:g}; give a number {wanted}")
    return None if value is None else value * scale


def share(option: str, value: float) -> float:
    """`value`, if it is a share. Raises InputError."""
    if not 0 <= value <= 1:
        raise InputError(f"{option} is {value:g}; give a share from 0 to 1")
    return value


def notes(setting: Setting) -> Iterator[str]:
    """What a reader of the plan should know of the figures behind it."""
    if setting.gate is None:
        yield "mode auto is left out: the drafter is not calibrated (`cutline calibrate`)"
    if setting.prices is None:
        yield "what narrower wire formats change was not measured for this target (`cutline calibrate`)"
    if setting.leaks is None:
        yield "what leaks at a cut was not measured for this target (`python -m cutline.bench.privacy`)"
    tables: tuple[tuple[DeviceProfile | Speed, Manifest, Runtime], ...] = (
        (setting.edge, setting.target, "edge"),
        (setting.cloud, setting.target, "cloud"),
    )
    for profile, manifest, runtime in tables:
        if isinstance(profile, Speed):  # an upstream has none
            continue
        yield " ".join((f"{profile.name} is planned by what {profile.provider} reaches.", *profile.notes))
        if profile.layer_table(manifest.identity, runtime) is None:
            origin = "has a datasheet's figures" if profile.source == "datasheet" else "was measured without this model"
            yield f"{profile.name} {origin}, so its times are rough (`cutline profile` measures them)"
        if profile.throttled:
            yield f"{profile.name} was throttled when it was measured"
    if setting.edge.loaded_watts is not None and setting.edge.idle_watts is None:
        yield f"{setting.edge.name} has no idle power: its energy is that of work alone"


def _picture(models: PlannedModels, image: Path | None) -> bytes:
    if image is None:
        return (DRAFTER.parent.parent / CARD).read_bytes() if models.is_demo else photograph()
    try:
        with image.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
    except OSError as error:
        raise ImageError(f"cannot read {image}: {error.strerror}") from None
