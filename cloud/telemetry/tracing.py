"""OpenTelemetry spans of sessions, within the agent's own trace if it sent one. Imported only if tracing is on."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account

_NANO = 1_000_000_000
_WORKER_FAULTS = frozenset({"INTERNAL", "UNKNOWN"})  # statuses that are the worker's own fault


class Tracing(Observer):
    """An observer that hands each session's span to `processor`. Close it to flush the spans."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create({SERVICE_NAME: "cutline-worker"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cutline.cloud")

    @classmethod
    def to_collector(cls) -> Tracing:
        """Send spans to the collector that OpenTelemetry's environment variables name."""
        return cls(BatchSpanProcessor(OTLPSpanExporter()))

    def close(self) -> None:
        """Flush the spans that wait, and stop."""
        self._provider.shutdown()

    def ended(self, account: Account) -> None:
        """Emit the session's span, built from its account."""

        def at(seconds: float) -> int:
            return round((account.began + seconds) * _NANO)

        above = TraceContextTextMapPropagator().extract({"traceparent": account.trace} if account.trace else {})
        span = self._tracer.start_span(
            "cutline.session",
            context=above,
            kind=SpanKind.SERVER,
            start_time=at(0.0),
            attributes={f"cutline.{key}": value for key, value in account.fields().items()},
        )
        if account.opened is not None and account.opened_seconds is not None:
            opened, end = account.opened, account.opened_seconds
            span.add_event("uploaded", timestamp=at(end - opened.queue_seconds - opened.prepare_seconds))
            span.add_event("prepared", timestamp=at(end - opened.queue_seconds))
            span.add_event("opened", timestamp=at(end))
        if account.first_seconds is not None:
            span.add_event("first token", timestamp=at(account.first_seconds))
        if account.finished is not None:
            passes = {"passes": account.finished.passes, "cloud_seconds": account.finished.cloud_seconds}
            span.add_event("passes", attributes=passes, timestamp=at(account.seconds))
        if account.status in _WORKER_FAULTS:
            span.set_status(Status(StatusCode.ERROR, account.status))
        span.end(end_time=at(account.seconds))
