"""`cutline plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutline.cli import completion, options

EPILOG = "Example: cutline plan --edge raspberry-pi-5 --cloud l4 --link 3g --exact --explain"


def plan(
    bundle: Annotated[
        str | None,
        typer.Option(
            help="The drafter: a bundle's folder, a published model's name or a shape's TOML file; else the demo's.",
            show_default=False,
            autocompletion=completion.shapes,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The target, likewise.", show_default=False, autocompletion=completion.shapes),
    ] = None,
    edge: Annotated[
        str,
        typer.Option(
            help="Profile of the device: a name, or a TOML file of `cutline profile`.",
            autocompletion=completion.devices,
        ),
    ] = "raspberry-pi-5",
    cloud: Annotated[
        str, typer.Option(help="Profile of the worker's machine, likewise.", autocompletion=completion.devices)
    ] = "l4",
    link: Annotated[
        str, typer.Option(help="Name of a link profile, or a TOML file of one.", autocompletion=completion.links)
    ] = "4g",
    provider: Annotated[
        str, typer.Option(help="ONNX Runtime's execution provider on the device; only what it reaches counts.")
    ] = "cpu",
    rtt_ms: Annotated[float | None, typer.Option(help="Round trip in place of the link's.", show_default=False)] = None,
    uplink_mbps: Annotated[float | None, typer.Option(help="Rate up in place of its own.", show_default=False)] = None,
    queue_ms: Annotated[float, typer.Option(help="How long a request waits on the worker.")] = 0.0,
    objective: Annotated[str, typer.Option(help="What to have least of: latency, energy, cloud-cost.")] = "latency",
    mode: Annotated[str | None, typer.Option(help="Plan for this mode alone.", show_default=False)] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Also for requests that the gate passes on.", show_default=False)
    ] = None,
    max_energy_j: Annotated[float | None, typer.Option(help="The device's, a request.", show_default=False)] = None,
    max_uplink_bytes: Annotated[float | None, typer.Option(help="A request, on average.", show_default=False)] = None,
    image_must_stay: Annotated[
        bool, typer.Option("--image-must-stay", help="Neither the picture nor its bare patches leave the device.")
    ] = False,
    min_cut: Annotated[
        str | None, typer.Option(help="The device runs all layers before this one, at least.", show_default=False)
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only plans whose every token is the target's own.")] = False,
    min_agreement: Annotated[
        float, typer.Option(help="Share of answers that must be the target's own, where that was measured.")
    ] = 0.9,
    max_leak: Annotated[
        float | None,
        typer.Option(
            help="Share of a picture that an attacker may recover, as measured; a cut that nobody measured leaks all.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image; without it, a card of the demo or a photograph.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the prompt, the image's among them.", show_default=False)
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 16,
    acceptance: Annotated[float, typer.Option(help="How often a drafted token is right.")] = 0.8,
    explain: Annotated[bool, typer.Option("--explain", help="Show every plan by the parts of its latency.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the plans into this file: .svg, .png or .pdf.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    listing: Annotated[
        bool, typer.Option("--list", help="List the profiles and the models that are known by name, and plan nothing.")
    ] = False,
) -> int:
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

    if listing:
        show_known(as_json=as_json)
        return 0
    if plot is not None:
        inputs.check_plot(plot)
    models = PlannedModels.open(bundle, target)
    setting = models.setting(edge=edge, cloud=cloud, provider=provider, wants_gate=mode == "auto")
    asked = inputs.asked_of(models, image, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    limits = Limits(
        latency=inputs.positive("--max-latency-ms", max_latency_ms, scale=1e-3),
        energy=inputs.positive("--max-energy-j", max_energy_j),
        bytes_up=inputs.positive("--max-uplink-bytes", max_uplink_bytes),
        memory=setting.edge.memory_free_bytes or setting.edge.memory_bytes,
        image_must_stay=image_must_stay,
        min_cut=inputs.known_cut("--min-cut", min_cut, setting.target),
        exact=exact,
        agreement=inputs.share("--min-agreement", min_agreement),
        leak=None if max_leak is None else inputs.share("--max-leak", max_leak),
    )
    conditions = inputs.conditions_of(link, rtt_ms, uplink_mbps, queue_ms=queue_ms, acceptance=acceptance)
    space = inputs.space_of(setting.target, mode)
    found = search(
        setting, asked, space, conditions, limits=limits, objective=inputs.known_objective("--objective", objective)
    )
    misfitting = misfit(found, setting, asked)
    if found.best is None:
        reason = "; ".join(one for one in (refusal(found), misfitting) if one)
        if as_json:
            show_refusal(found, reason)
        raise InputError(reason)
    notes = [*([misfitting] if misfitting else []), *models.notes, *inputs.notes(setting)]
    show(PlanFound.of(found, asked, why=why(found, asked), notes=notes, every=explain), as_json=as_json)
    if plot is not None:
        from cutline.cli.planning.plot import draw

        draw(found, plot)
    return 0
