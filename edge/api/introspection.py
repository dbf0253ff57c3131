"""What the agent tells of itself: its models, whether it is ready, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from cutline.core.request import Mode
from cutline.edge.api.metrics import Totals
from cutline.edge.generation.result import Audited
from cutline.edge.offload.status import AgentState, Breaker, WorkerState


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked for now."""

    modes: tuple[Mode, ...]
    cuts: tuple[str, ...]
    vision: bool
    drafter: str
    target: str | None
    offline: bool
    workers: tuple[WorkerState, ...]


class Architecture(msgspec.Struct, frozen=True):
    """What goes into the model, and what comes out."""

    input_modalities: tuple[Literal["text", "image", "video"], ...]
    output_modalities: tuple[Literal["text"], ...] = ("text",)


class Modalities(msgspec.Struct, frozen=True):
    """What is taken beside words, as llama.cpp's server says it."""

    vision: bool = True
    audio: bool = False


class GenerationSettings(msgspec.Struct, frozen=True):
    """`n_ctx` is the context, in tokens."""

    n_ctx: int


class TemplateAbilities(msgspec.Struct, frozen=True):
    """What the chat template has words for."""

    supports_tools: bool = False


class Props(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as clients of llama.cpp's server look it up."""

    default_generation_settings: GenerationSettings
    modalities: Modalities = Modalities()
    model_alias: str
    chat_template_caps: TemplateAbilities = TemplateAbilities()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as a model, which answers to `aliases`, too; a prompt and its answer have `max_model_len` tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cutline"
    aliases: tuple[str, ...]
    max_model_len: int
    architecture: Architecture
    capabilities: tuple[Literal["completion", "vision", "tools"], ...]
    meta: GenerationSettings
    cutline: Abilities


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The models that can be asked: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(msgspec.Struct, frozen=True):
    """That the agent is alive."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a plain question is answered, or why it is not, and with which workers."""

    ready: bool
    why: str | None = None
    offline: bool
    workers: tuple[WorkerState, ...]


class LinkNow(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of the way to the worker that is asked first."""

    rtt_ms: float | None
    uplink_mbps: float | None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent stands, for the page; `totals` count since it was started.

    `switchable` says that `offline` can be set by who asks; `audits` are what audits have shown, by group.
    """

    ready: bool
    offline: bool
    switchable: bool
    modes: tuple[Mode, ...]
    drafter: str
    target: str | None
    cuts: tuple[str, ...]
    plans: bool
    upstream: str | None
    audits: Mapping[str, Audited]
    workers: tuple[WorkerState, ...]
    link: LinkNow | None
    totals: Totals


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be set: `offline`, so that nothing leaves the device."""

    offline: bool


def model_of(standing: AgentState, created: int, *, context: int, alias: str) -> Model:
    """The agent as a model of OpenAI's list, of a `context` in tokens, and with another name."""
    able = Abilities(
        modes=standing.modes,
        cuts=standing.cuts,
        vision=True,
        drafter=standing.drafter,
        target=standing.target,
        offline=standing.offline,
        workers=standing.workers,
    )
    return Model(
        id=standing.drafter,
        created=created,
        aliases=(alias,),
        max_model_len=context,
        architecture=Architecture(("text", "image", "video") if standing.videos else ("text", "image")),
        capabilities=("completion", "vision", "tools") if standing.tools else ("completion", "vision"),
        meta=GenerationSettings(context),
        cutline=able,
    )


def state_of(standing: AgentState, totals: Totals, *, switchable: bool) -> State:
    """The agent's state as the page shows it."""
    asked = [one for one in standing.workers if one.breaker is Breaker.CLOSED]
    known = [one for one in asked if one.rtt_ms is not None or one.uplink_mbps is not None]
    return State(
        ready=standing.ready,
        offline=standing.offline,
        switchable=switchable,
        modes=standing.modes,
        drafter=standing.drafter,
        target=standing.target,
        cuts=standing.cuts,
        plans=standing.plans,
        upstream=standing.upstream,
        audits=standing.audits,
        workers=standing.workers,
        link=LinkNow(rtt_ms=known[0].rtt_ms, uplink_mbps=known[0].uplink_mbps) if known else None,
        totals=totals,
    )
