"""`cutline plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cutline.cli import completion, options
from cutline.cli.fields import with_options

EPILOG = "Example: cutline plan --edge raspberry-pi-5 --cloud l4 --link 3g --exact --explain"


class PlannedFor(msgspec.Struct, frozen=True, kw_only=True):
    """The models and machines to plan for."""

    bundle: Annotated[
        str | None,
        typer.Option(
            help="The drafter: a bundle's folder, a published model's name or a shape's TOML file; else the demo's.",
            show_default=False,
            autocompletion=completion.shapes,
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(help="The target, likewise.", show_default=False, autocompletion=completion.shapes),
    ] = None
    edge: Annotated[
        str,
        typer.Option(
            help="Profile of the device: a name, or a TOML file of `cutline profile`.",
            autocompletion=completion.devices,
        ),
    ] = "raspberry-pi-5"
    cloud: Annotated[
        str, typer.Option(help="Profile of the worker's machine, likewise.", autocompletion=completion.devices)
    ] = "l4"
    provider: Annotated[str, "ONNX Runtime's execution provider on the device; only what it reaches counts."] = "cpu"


class Required(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to."""

    max_latency_ms: Annotated[float | None, "Also for requests that the gate passes on."] = None
    max_energy_j: Annotated[float | None, "The device's, a request."] = None
    max_uplink_bytes: Annotated[float | None, "A request, on average."] = None
    image_must_stay: Annotated[bool, "Neither the picture nor its bare patches leave the device."] = False
    min_cut: Annotated[str | None, "The device runs all layers before this one, at least."] = None
    exact: Annotated[bool, "Only plans whose every token is the target's own."] = False
    min_agreement: Annotated[float, "Share of answers that must be the target's own, where that was measured."] = 0.9
    max_leak: Annotated[
        float | None,
        "Share of a picture that an attacker may recover, as measured; a cut that nobody measured leaks all.",
    ] = None


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline plan` is given."""

    planned: PlannedFor
    link: Annotated[
        str, typer.Option(help="Name of a link profile, or a TOML file of one.", autocompletion=completion.links)
    ] = "4g"
    rtt_ms: Annotated[float | None, "Round trip in place of the link's."] = None
    uplink_mbps: Annotated[float | None, "Rate up in place of its own."] = None
    queue_ms: Annotated[float, "How long a request waits on the worker."] = 0.0
    objective: Annotated[str, "What to have least of: latency, energy, cloud-cost."] = "latency"
    mode: Annotated[str | None, "Plan for this mode alone."] = None
    required: Required
    image: Annotated[Path | None, "The image; without it, a card of the demo or a photograph."] = None
    prompt_tokens: Annotated[int | None, "Tokens of the prompt, the image's among them."] = None
    answer_tokens: Annotated[int, "Tokens of the answer."] = 16
    acceptance: Annotated[
        float | None, "How often a drafted token is right; without it as `cutline calibrate` found it, or 0.8."
    ] = None
    explain: Annotated[bool, "Show every plan by the parts of its latency."] = False
    plot: Annotated[Path | None, "Draw the plans into this file: .svg, .png or .pdf."] = None
    as_json: options.Json = False
    listing: Annotated[
        bool, typer.Option("--list", help="List the profiles and the models that are known by name, and plan nothing.")
    ] = False


@with_options
def plan(given: PlanOptions) -> int:
    """Choose where to cut and how to answer, from profiles of device, worker and link.

    Predicts latency, bytes up, energy and cloud time for every mode, cut and wire format, and says which is best and
    why. Nothing of the models runs.
    """
    from cutline.cli.planning import inputs
    from cutline.cli.planning.listing import show_known
    from cutline.cli.planning.models import PlannedModels
    from cutline.cli.planning.view import PlanFound, show, show_refusal
    from cutline.errors import InputError
    from cutline.partitioner.explain import misfit, refusal, why
    from cutline.partitioner.plan import Limits
    from cutline.partitioner.search import search

    if given.listing:
        show_known(as_json=given.as_json)
        return 0
    if given.plot is not None:
        inputs.check_plot(given.plot)
    planned, required = given.planned, given.required
    models = PlannedModels.open(planned.bundle, planned.target)
    setting = models.setting(
        edge=planned.edge, cloud=planned.cloud, provider=planned.provider, wants_gate=given.mode == "auto"
    )
    asked = inputs.asked_of(models, given.image, prompt_tokens=given.prompt_tokens, answer_tokens=given.answer_tokens)
    limits = Limits(
        latency=inputs.positive("--max-latency-ms", required.max_latency_ms, scale=1e-3),
        energy=inputs.positive("--max-energy-j", required.max_energy_j),
        bytes_up=inputs.positive("--max-uplink-bytes", required.max_uplink_bytes),
        memory=setting.edge.memory_free_bytes or setting.edge.memory_bytes,
        image_must_stay=required.image_must_stay,
        min_cut=inputs.known_cut("--min-cut", required.min_cut, setting.target),
        exact=required.exact,
        agreement=inputs.share("--min-agreement", required.min_agreement),
        leak=None if required.max_leak is None else inputs.share("--max-leak", required.max_leak),
    )
    acceptance = setting.acceptance if given.acceptance is None else given.acceptance
    conditions = inputs.conditions_of(
        given.link, given.rtt_ms, given.uplink_mbps, queue_ms=given.queue_ms, acceptance=acceptance
    )
    space = inputs.space_of(setting.target, given.mode)
    objective = inputs.known_objective("--objective", given.objective)
    found = search(setting, asked, space, conditions, limits=limits, objective=objective)
    misfitting = misfit(found, setting, asked)
    if found.best is None:
        reason = "; ".join(one for one in (refusal(found), misfitting) if one)
        if given.as_json:
            show_refusal(found, reason)
        raise InputError(reason)
    notes = [*([misfitting] if misfitting else []), *models.notes, *inputs.notes(setting)]
    view = PlanFound.of(found, asked, why=why(found, asked), notes=notes, every=given.explain)
    show(view, as_json=given.as_json)
    if given.plot is not None:
        from cutline.cli.planning.plot import draw

        draw(found, given.plot)
    return 0
