"""What an agent's answers took, counted for operators in Prometheus' format, and for the page."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cutline.core.escalations.recorder import JournalCounts
from cutline.edge.generation.result import Answer, Audited, Decision, Provenance, Tail

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_DECIDED = {Decision.KEPT: "yes", Decision.PASSED: "no"}
EMBEDDINGS = "embeddings"  # among the modes that requests are counted by
CANCELLED = 499  # the status that is counted where the client was gone before its answer


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All answers so far: their `tokens` by source, bytes of messages, and what the device spent, where it is known.

    `estimated` says whether any of the `joules` were.
    """

    answers: int = 0
    tokens: dict[Provenance, int] = msgspec.field(default_factory=lambda: dict.fromkeys(Provenance, 0))
    bytes_up: int = 0
    bytes_down: int = 0
    joules: float | None = None
    estimated: bool = False
    lost: int = 0

    def after(self, answer: Answer) -> Totals:
        """The totals with one more answer."""
        tokens = dict(self.tokens)
        for token in answer.tokens:
            tokens[token.source] += 1
        spent = None if answer.energy is None else (self.joules or 0.0) + answer.energy.joules
        return Totals(
            answers=self.answers + 1,
            tokens=tokens,
            bytes_up=self.bytes_up + answer.bytes_up,
            bytes_down=self.bytes_down + answer.bytes_down,
            joules=self.joules if spent is None else spent,
            estimated=self.estimated or (answer.energy is not None and answer.energy.estimated),
            lost=self.lost + len(answer.lost),
        )


class AgentMetrics:
    """Counts in a `registry` of its own; `totals` are those that the page shows."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.registry = registry = CollectorRegistry()
        self.working = Gauge("cutline_agent_requests_in_work", "Requests in work", registry=registry)
        self._requests = Counter(
            "cutline_agent_requests", "Questions by mode and HTTP status", ["mode", "status"], registry=registry
        )
        self._latency = Histogram(
            "cutline_agent_latency_seconds", "Whole answers", ["mode"], buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "cutline_agent_first_token_seconds", "First tokens", ["mode"], buckets=_SECONDS, registry=registry
        )
        tokens = Counter("cutline_agent_tokens", "Tokens of answers", ["source"], registry=registry)
        self._tokens = {source: tokens.labels(source) for source in Provenance}
        carried = Counter("cutline_agent_bytes", "Bytes of sessions' messages", ["direction"], registry=registry)
        self._up, self._down = carried.labels("up"), carried.labels("down")
        self._rounds = Counter("cutline_agent_rounds", "Sendings that depended on a reply", registry=registry)
        self._lost = Counter("cutline_agent_workers_lost", "Workers lost in the middle of answers", registry=registry)
        self._gate = Counter(
            "cutline_agent_gate", "Answers that the gate decided about, by group", ["group", "kept"], registry=registry
        )
        self._audited = Gauge(
            "cutline_agent_audited", "Audited answers, by group", ["group", "agreed"], registry=registry
        )
        self._shut = Gauge("cutline_agent_gate_shut", "Whether audits have shut a group", ["group"], registry=registry)
        self._journal = Gauge(
            "cutline_agent_journal", "Answers for the journal by what became of them", ["what"], registry=registry
        )
        self._journal_bytes = Gauge("cutline_agent_journal_bytes", "Bytes of the journal", registry=registry)
        self._recalled = Counter(
            "cutline_agent_recalled", "Answers from memory, of which nothing is promised", registry=registry
        )
        self._alone = Counter(
            "cutline_agent_finished_alone", "Tails by what became of them", ["tail"], registry=registry
        )
        self._embedded = Counter(
            "cutline_agent_embedded", "Texts and images that an encoder made rows of", ["kind"], registry=registry
        )
        self._joules = Counter("cutline_agent_energy_joules", "What answers took, where it is known", registry=registry)

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        self.totals = self.totals.after(answer)
        self._requests.labels(answer.mode, 200).inc()
        self._latency.labels(answer.mode).observe(answer.latency_ms / 1e3)
        self._first.labels(answer.mode).observe(answer.ttft_ms / 1e3)
        for token in answer.tokens:
            self._tokens[token.source].inc()
        self._up.inc(answer.bytes_up)
        self._down.inc(answer.bytes_down)
        self._rounds.inc(answer.rounds)
        self._lost.inc(len(answer.lost))
        self._recalled.inc(answer.recalled is not None)
        if answer.gate is not None and answer.gate.decision in _DECIDED:
            self._gate.labels(answer.gate.group, _DECIDED[answer.gate.decision]).inc()
        if answer.tail is not None:
            self._alone.labels(Tail(answer.tail)).inc()
        if answer.energy is not None:
            self._joules.inc(answer.energy.joules)

    def embedded(self, *, texts: int, images: int, seconds: float) -> None:
        """Count a request for rows of so many texts and images."""
        self._requests.labels(EMBEDDINGS, 200).inc()
        self._latency.labels(EMBEDDINGS).observe(seconds)
        self._embedded.labels("text").inc(texts)
        self._embedded.labels("image").inc(images)

    def failed(self, mode: str | None, status: int) -> None:
        """Count a request that had no answer; `mode` is None where the request did not read."""
        self._requests.labels(mode or "none", status).inc()

    def text(self, audits: Mapping[str, Audited], journal: JournalCounts | None) -> bytes:
        """All of it, what `audits` have shown of each group and what the `journal` has, as Prometheus reads it."""
        for group, shown in audits.items():
            self._audited.labels(group, "yes").set(shown.audited - shown.disagreed)
            self._audited.labels(group, "no").set(shown.disagreed)
            self._audited.labels(group, "unsent").set(shown.unsent)
            self._shut.labels(group).set(shown.shut)
        if journal is not None:
            for what in ("kept", "evicted", "lost"):
                self._journal.labels(what).set(getattr(journal, what))
            self._journal_bytes.set(journal.size)
        return generate_latest(self.registry)
