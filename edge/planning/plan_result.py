"""A plan that was chosen for a request, and how an answer tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from cutline.edge.generation.generation import Execution
from cutline.edge.generation.result import Believed, Forecast, RunnerUp
from cutline.partitioner.estimators import Serving
from cutline.partitioner.plan import Conditions, Plan
from cutline.partitioner.setting import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A plan for one request: `execution` is how to carry it out, `plan` what that was predicted to cost, corrected.

    `next` is the best one of another kind; `serving` what is believed of an upstream, where one is asked.
    """

    execution: Execution
    plan: Plan
    next: Plan | None
    correction: float
    why: str
    kind: int
    asked: Asked
    conditions: Conditions
    serving: Serving | None
    throttled: bool

    def forecast(self, *, hindsight: float, measured: float, cold: bool) -> Forecast:
        """The plan as an answer tells it that took `measured` seconds; `hindsight` is uncorrected."""
        plan, now, serving = self.plan, self.conditions, self.serving
        return Forecast(
            mode=plan.mode,
            cut=plan.cut,
            wire=plan.wire,
            effort=None if plan.drafting is None else plan.drafting.effort,
            predicted_ms=plan.latency_ms,
            uncorrected_ms=plan.latency_ms / self.correction,
            correction=self.correction,
            hindsight_ms=hindsight * self.correction * 1e3,
            measured_ms=measured * 1e3,
            cold=cold,
            why=self.why,
            runner_up=None if self.next is None else _runner_up(self.next),
            believed=Believed(
                rtt_ms=now.rtt * 1e3,
                uplink_mbps=now.uplink / 125_000,
                queue_ms=now.queue * 1e3,
                acceptance=now.acceptance,
                answer_tokens=self.asked.answer_tokens,
                throttled=self.throttled,
                first_ms=None if serving is None else serving.first.value * 1e3,
                token_ms=None if serving is None else serving.token.value * 1e3,
                guessed=serving is not None and not serving.answered,
            ),
        )


def _runner_up(plan: Plan) -> RunnerUp:
    return RunnerUp(mode=plan.mode, cut=plan.cut, wire=plan.wire, predicted_ms=plan.latency_ms)
