"""What the service did, as Prometheus reads it. Names have underscores only: promtool rejects colons."""

import threading
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from agentkv.api import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SECONDS_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LabelCap:
    """Bounds a label that callers choose: the first `limit` values pass, later ones are shown as `other`."""

    def __init__(self, limit: int, max_length: int = 64) -> None:
        self._limit = limit
        self._max_length = max_length
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, value: str) -> str:
        """The value to show, cut to `max_length` characters."""
        value = value[: self._max_length] or "unknown"
        with self._lock:
            if value not in self._known and len(self._known) >= self._limit:
                return "other"
            self._known.add(value)
        return value


class Metrics:
    """Counters and histograms in a registry of their own.

    Args:
        max_agent_labels: distinct agent labels that are shown.
        kv_bytes: bytes of KV held, by tier; asked at every scrape.
        running: chats under way; asked at every scrape.
    """

    def __init__(
        self,
        *,
        max_agent_labels: int = 64,
        kv_bytes: Callable[[], Mapping[str, int]] | None = None,
        running: Callable[[], int] | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._agent = LabelCap(max_agent_labels)
        self._reason = LabelCap(32)
        if kv_bytes is not None:
            self._registry.register(_Gauge("kv_bytes", "Bytes of KV held, by tier.", kv_bytes, "tier"))
        if running is not None:
            self._registry.register(_Gauge("running_chats", "Chats under way.", lambda: {"": running()}))
        self._requests = self._counter("requests", "Chats by how they ended.", "outcome")
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens by where their KV came from.", "agent", "source"
        )
        self._generated = self._counter("generation_tokens", "Tokens generated.", "agent")
        self._row_layers = self._counter("row_layers", "Layers run for prompts, summed over rows.")
        self._full_row_layers = self._counter("full_row_layers", "Layers that full prefill of the same prompts runs.")
        self._lookups = self._counter("segment_lookups", "Segments found, or why not.", "result", "reason")
        self._restored = self._counter("restored_tokens", "Tokens read from segments that came from host memory.")
        self._edges = self._counter(
            "segment_edges_tokens", "Tokens read from segments, by who wrote and who reads.", "from_agent", "to_agent"
        )
        self._fallbacks = self._counter("fallbacks", "Chats with reuse that did not happen, by reason.", "reason")
        self._queue = self._histogram("queue_seconds", "Seconds until the engine takes a chat up.", _SECONDS)
        self._ttft = self._histogram("time_to_first_token_seconds", "Seconds to the first token.", _SECONDS)
        self._tpot = self._histogram("time_per_output_token_seconds", "Seconds a token after it.", _SECONDS_PER_TOKEN)
        self._e2e = self._histogram("request_duration_seconds", "Seconds from submission to the end.", _SECONDS)

    def count_request(self, outcome: str) -> None:
        """Count a chat that ended: a finish reason, or the code of its error."""
        self._requests.labels(outcome).inc()

    def observe(self, usage: Usage) -> None:
        """Add a finished chat's tokens and times."""
        reuse = usage.reuse
        agent = self._agent(reuse.agent)
        sources = {
            "computed": reuse.computed,
            "prefix": reuse.prefix,
            "segment": reuse.reused,
            "recomputed": reuse.repaired,
        }
        for source, count in sources.items():
            self._prompt_tokens.labels(agent, source).inc(count)
        self._generated.labels(agent).inc(usage.completion_tokens)
        self._row_layers.inc(reuse.row_layers)
        self._full_row_layers.inc(reuse.full_row_layers)
        self._lookups.labels("hit", "").inc(reuse.segments)
        self._restored.inc(reuse.restored)
        for reason, count in reuse.misses.items():
            self._lookups.labels("miss", self._reason(reason)).inc(count)
            self._fallbacks.labels(self._reason(reason)).inc()
        for author, count in reuse.authors.items():
            self._edges.labels(self._agent(author), agent).inc(count)
        self._observe_times(usage)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, see `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _observe_times(self, usage: Usage) -> None:
        if usage.queue is not None:
            self._queue.observe(usage.queue)
        if usage.ttft is not None:
            self._ttft.observe(usage.ttft)
        if usage.duration is not None:
            self._e2e.observe(usage.duration)
        if usage.ttft is not None and usage.duration is not None and usage.completion_tokens > 1:
            self._tpot.observe((usage.duration - usage.ttft) / (usage.completion_tokens - 1))

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"agentkv_{name}", documentation, labels, registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"agentkv_{name}", documentation, buckets=buckets, registry=self._registry)


class _Gauge(Collector):
    """Reads the gauge when it is scraped: nothing has to keep it up to date."""

    def __init__(self, name: str, documentation: str, read: Callable[[], Mapping[str, int]], *labels: str) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read
        self._labels = labels

    def describe(self) -> list[GaugeMetricFamily]:
        return [self._family()]

    def collect(self) -> list[GaugeMetricFamily]:
        family = self._family()
        for label, count in self._read().items():
            family.add_metric([label] if self._labels else [], count)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"agentkv_{self._name}", self._documentation, labels=self._labels)
