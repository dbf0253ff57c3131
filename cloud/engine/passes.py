"""Passes of the target: run, timed, and what they cost learnt from those seen."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutline.cloud.engine.cost_model import PassCost
from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.sampler import choose_all
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import PassAborted, Target
from cutline.cloud.model.tensor_parallel import RankLost
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.watchdog import EngineProgress

REST_SECONDS = 30.0  # without a pass, after which weights may have been put out of memory
FATAL = (torch.AcceleratorError, RankLost)  # nothing runs on the device, or on all, after these, for any session


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What a pass made of a session's `rows`, in so many `seconds`: its share of the pass.

    `made` (n, width) are rows, where the head is here logits (wanted, vocabulary) and `chosen` the tokens they give.
    """

    rows: SessionRows
    seconds: float
    made: Tensor
    chosen: list[int] | None


@dataclass(frozen=True, slots=True, eq=False)
class Broken:
    """A pass of these `rows` alone ended with an `error`."""

    rows: SessionRows
    error: Exception


class Passes:
    """Of a `target`, by one thread, whose `progress` says what pass it is at; prompts take their rows from `images`."""

    def __init__(
        self,
        target: Target,
        stop_tokens: Collection[int],
        images: ImageFeatures,
        listeners: Listeners,
        progress: EngineProgress,
        observer: Observer,
    ) -> None:
        self.cost = PassCost()
        self._target = target
        self._stop_tokens = frozenset(stop_tokens)
        self._images = images
        self._listeners = listeners
        self._progress = progress
        self._observer = observer
        self._fresh_until = -math.inf  # on the monotonic clock: how long what passes took tells of the next one

    def run(self, batch: Sequence[SessionRows]) -> Iterator[Passed | Broken]:
        """One pass of `batch`, if there is any; nothing comes of it once nobody waits for any of it.

        A session that breaks it is found by running each alone. Raises FATAL.
        """
        if not batch:
            return
        sessions = [rows.session for rows in batch]
        images = [self._images.of(session) for session in sessions]
        began, count = time.perf_counter(), sum(len(rows.tokens) for rows in batch)
        try:
            with self._progress.at(self.cost.usual(count) if time.monotonic() < self._fresh_until else None):
                made = self._target.run(batch, images, aborted=lambda: not self._listeners.awaits(sessions))
                chosen: list[list[int] | None] = [None] * len(batch)
                if self._target.chooses:
                    pairs = zip(batch, made, strict=True)
                    chosen = [choose_all(rows, logits, self._stop_tokens) for rows, logits in pairs]
        except PassAborted:
            return
        except FATAL:
            raise
        except Exception as error:
            if len(batch) == 1:
                yield Broken(batch[0], error)
            else:
                for rows in batch:
                    yield from self.run([rows])
            return
        finally:
            self._fresh_until = time.monotonic() + REST_SECONDS
        seconds = time.perf_counter() - began
        self.cost = self.cost.after(count, seconds)
        self._observer.passed(count, seconds)
        for rows, out, tokens in zip(batch, made, chosen, strict=True):
            yield Passed(rows, seconds * len(rows.tokens) / count, out, tokens)
