"""What a server tells Prometheus of itself: what waits, what slots do, what answers cost and how long they take."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxdiff.serve.queue import Answer, Meter
from jaxdiff.serve.service import Service, Work

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds


class Metrics(Collector):
    """Of one server, in a registry of its own."""

    def __init__(self, service: Service, meter: Meter) -> None:
        self.service, self.meter = service, meter
        self.nfe = self.tokens = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"jaxdiff_{name}_seconds", what, buckets=BUCKETS, registry=self.registry)

        self.responses = Counter(
            "jaxdiff_responses", "HTTP responses that were begun.", ("endpoint", "status"), registry=self.registry
        )
        self.waited = seconds("queue", "From when a request was taken until it got a slot.")
        self.first_text = seconds("first_text", "From when a streamed request was taken until its first text.")
        self.total = seconds("request", "From when a request was taken until its answer.")

    def answered(self, work: Work, answer: Answer, now: float) -> None:
        """`now`: on `time.monotonic`'s clock."""
        self.nfe += answer.nfe
        self.tokens += answer.length
        self.waited.observe(work.entered - work.submitted)
        self.total.observe(now - work.submitted)

    def collect(self) -> Iterator[Metric]:
        service, meter = self.service, self.meter
        busy = meter.seconds
        yield GaugeMetricFamily("jaxdiff_queue_length", "Requests that wait for a slot.", service.waiting)
        yield GaugeMetricFamily("jaxdiff_slots", "Rows that are decoded at a time.", service.slots)
        yield GaugeMetricFamily("jaxdiff_slots_busy", "Of these, rows with a request.", service.busy)
        yield GaugeMetricFamily("jaxdiff_occupancy", "Mean share of slots with work, in steps so far.", meter.occupancy)
        yield CounterMetricFamily("jaxdiff_steps", "Forwards of all slots together.", meter.steps)
        yield CounterMetricFamily("jaxdiff_row_steps", "The same, times the slots.", meter.slot_steps)
        yield CounterMetricFamily("jaxdiff_row_steps_busy", "Of these, with a request in the slot.", meter.busy)
        yield CounterMetricFamily("jaxdiff_device_seconds", "Spent in serve steps.", busy)
        yield CounterMetricFamily("jaxdiff_compile_seconds", "Spent in compiling.", meter.compile_seconds)
        yield GaugeMetricFamily("jaxdiff_programs", "Compiled so far.", meter.programs)
        yield CounterMetricFamily("jaxdiff_nfe", "Forwards of the answers, row by row.", self.nfe)
        yield CounterMetricFamily("jaxdiff_generated_tokens", "Tokens of the answers, through their end.", self.tokens)
        yield GaugeMetricFamily("jaxdiff_tokens_per_forward", "TPF of the answers.", self.tokens / max(self.nfe, 1))
        yield GaugeMetricFamily(
            "jaxdiff_tokens_per_second", "Of the answers, while the device worked.", self.tokens / max(busy, 1e-9)
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
