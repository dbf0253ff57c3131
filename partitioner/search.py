"""Finds the best plan by exact search over all choices, and the Pareto front.

`search` computes the terms of every choice once. `replan` then applies other conditions in less than a millisecond, so
that an agent can plan each request for the current link.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cutline.errors import InputError
from cutline.models.layerline import LayerLine
from cutline.partitioner.cost import Bools, Terms, terms_of
from cutline.partitioner.plan import Conditions, Limits, Objective, Plan, Space
from cutline.partitioner.predict import Prediction, corrected, plan_of, predict
from cutline.partitioner.setting import Asked, Setting
from cutline.partitioner.spans import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The plans of all choices, simple ones first, and which of them are within the limits.

    `best` is None if none is.
    """

    line: LayerLine
    terms: Terms
    conditions: Conditions
    limits: Limits
    objective: Objective
    found: Prediction
    allowed: Bools
    best: int | None

    def __len__(self) -> int:
        return len(self.terms.choices)

    def __getitem__(self, index: int) -> Plan:
        return plan_of(self.terms, self.found, index)

    def __iter__(self) -> Iterator[Plan]:
        return map(self.__getitem__, range(len(self)))

    @property
    def plan(self) -> Plan | None:
        """The best plan."""
        return None if self.best is None else self[self.best]

    @property
    def runner_up(self) -> Plan | None:
        """The best plan within the limits whose mode or cut differs from the best one's."""
        if self.best is None:
            return None
        taken = self.terms.choices[self.best]
        costs = np.where(self.allowed, cost(self.found, self.objective), np.inf)
        for index in np.argsort(costs, kind="stable")[: np.count_nonzero(self.allowed)]:
            other = self.terms.choices[index]
            if (other.mode, other.cut) != (taken.mode, taken.cut):
                return self[int(index)]
        return None

    def ranked(self) -> Iterator[Plan]:
        """The plans within the limits, best first; of equal ones the simpler first."""
        costs = np.where(self.allowed, cost(self.found, self.objective), np.inf)
        for index in np.argsort(costs, kind="stable")[: np.count_nonzero(self.allowed)]:
            yield self[int(index)]

    def front(self) -> tuple[int, ...]:
        """Indices of the Pareto front: the plans within the limits that no other one dominates.

        A plan dominates another if it is no worse in latency, energy (if known), bytes up and cloud seconds, and better
        in one of them.
        """
        found, indices = self.found, np.flatnonzero(self.allowed)
        figures = [found.latency, found.bytes_up, found.cloud]
        if not np.isnan(found.energy).any():
            figures.append(found.energy)
        costs = np.stack(figures, axis=1)[indices]
        no_worse = (costs[:, None] <= costs[None]).all(axis=2)
        better = (costs[:, None] < costs[None]).any(axis=2)
        return tuple(int(index) for index in indices[~(no_worse & better).any(axis=0)])


def search(
    setting: Setting,
    asked: Asked,
    space: Space,
    conditions: Conditions,
    *,
    limits: Limits,
    objective: Objective = "latency",
) -> Search:
    """Predict every choice in `space` and find the best.

    Raises InputError if there are no choices, or energy matters and the profile has no power.
    """
    terms = terms_of(setting, asked, space)
    if not terms.choices:
        raise InputError("there is nothing to choose from: no mode and cut fit together")
    if terms.loaded_watts is None and (objective == "energy" or limits.energy is not None):
        raise InputError(f"the profile {setting.edge.name} has no power; give one with loaded_power to plan energy")
    return _found(terms, setting.target.line, conditions, limits, objective)


def replan(before: Search, conditions: Conditions, *, correction: Floats | None = None) -> Search:
    """The same search under other conditions; the factors `correction` (n,), if given, multiply the latencies."""
    return _found(before.terms, before.line, conditions, before.limits, before.objective, correction)


def within(terms: Terms, found: Prediction, line: LayerLine, limits: Limits) -> dict[str, Bools]:
    """Which choices meet each of the limits that are set, by the limit's name."""
    kept: dict[str, Bools] = {}
    bounds = {"latency": found.slowest, "energy": found.energy, "bytes_up": found.bytes_up, "memory": terms.memory}
    for name, figures in bounds.items():
        bound = getattr(limits, name)
        if bound is not None:
            kept[name] = figures <= bound
    if limits.image_must_stay:
        kept["image_must_stay"] = terms.place > line.place("vision.0")
    if limits.min_cut is not None:
        kept["min_cut"] = terms.place >= line.place(limits.min_cut)
    if limits.exact:
        kept["exact"] = terms.exact
    if limits.agreement > 0:
        kept["agreement"] = ~(terms.agreement < limits.agreement)  # True for NaN, which is not measured
    if limits.leak is not None:
        kept["leak"] = terms.feared <= limits.leak
    return kept


def cost(found: Prediction, objective: Objective) -> Floats:
    """The quantity that the objective minimises."""
    return {"latency": found.latency, "energy": found.energy, "cloud-cost": found.cloud}[objective]


def _found(
    terms: Terms,
    line: LayerLine,
    conditions: Conditions,
    limits: Limits,
    objective: Objective,
    correction: Floats | None = None,
) -> Search:
    found = predict(terms, conditions)
    if correction is not None:
        found = corrected(found, correction)
    allowed = np.ones(len(terms.choices), bool)
    for kept in within(terms, found, line, limits).values():
        allowed &= kept
    costs = np.where(allowed, cost(found, objective), np.inf)
    return Search(
        line=line,
        terms=terms,
        conditions=conditions,
        limits=limits,
        objective=objective,
        found=found,
        allowed=allowed,
        best=int(np.argmin(costs)) if allowed.any() else None,
    )
