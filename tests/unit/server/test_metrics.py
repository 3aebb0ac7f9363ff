"""Metrics: what a chat adds, that labels stay bounded, and that Prometheus' own parser reads them."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from agentkv.api import ReuseUsage, Usage
from agentkv.metrics import LabelCap, Metrics
from fakes import FakeService


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def usage(agent: str = "writer", misses: dict[str, int] | None = None) -> Usage:
    reuse = ReuseUsage(
        prefix=10,
        reused=20,
        repaired=5,
        computed=15,
        segments=2,
        restored=15,
        row_layers=80,
        full_row_layers=200,
        agent=agent,
        authors={"researcher": 25},
        misses=misses or {},
    )
    return Usage(prompt_tokens=50, completion_tokens=11, reuse=reuse, queue=0.02, ttft=0.2, duration=1.2)


def test_a_chat_is_counted_by_source_agent_and_reason() -> None:
    metrics = Metrics(kv_bytes=lambda: {"pool": 4096, "host": 0})
    metrics.observe(usage(misses={"too_short": 3}))
    metrics.observe(usage())
    metrics.count_request("stop")
    seen = samples(metrics.render().decode())
    tokens = {source: seen["agentkv_prompt_tokens_total", "agent=writer", f"source={source}"] for source in SOURCES}
    assert tokens == {"computed": 30, "prefix": 20, "segment": 40, "recomputed": 10}
    assert seen["agentkv_generation_tokens_total", "agent=writer"] == 22
    assert seen["agentkv_row_layers_total",] == 160
    assert seen["agentkv_full_row_layers_total",] == 400
    assert seen["agentkv_segment_lookups_total", "reason=", "result=hit"] == 4
    assert seen["agentkv_restored_tokens_total",] == 30
    assert seen["agentkv_segment_lookups_total", "reason=too_short", "result=miss"] == 3
    assert seen["agentkv_fallbacks_total", "reason=too_short"] == 1
    assert seen["agentkv_segment_edges_tokens_total", "from_agent=researcher", "to_agent=writer"] == 50
    assert seen["agentkv_queue_seconds_bucket", "le=0.025"] == 2
    assert seen["agentkv_kv_bytes", "tier=pool"] == 4096
    assert seen["agentkv_requests_total", "outcome=stop"] == 1
    assert seen["agentkv_time_to_first_token_seconds_bucket", "le=0.25"] == 2
    assert seen["agentkv_time_per_output_token_seconds_bucket", "le=0.1"] == 2
    assert seen["agentkv_time_per_output_token_seconds_sum",] == 0.2
    assert seen["agentkv_request_duration_seconds_sum",] == 2.4


SOURCES = ("computed", "prefix", "segment", "recomputed")


def test_agent_labels_are_bounded() -> None:
    metrics = Metrics(max_agent_labels=4)  # the author of what is read is one more
    for index in range(100):
        metrics.observe(usage(agent=f"agent {index}", misses={f"reason {index}": 1}))
    seen = samples(metrics.render().decode())
    agents = {key[1] for key in seen if key[0] == "agentkv_generation_tokens_total"}
    assert agents == {"agent=agent 0", "agent=agent 1", "agent=agent 2", "agent=other"}
    assert seen["agentkv_generation_tokens_total", "agent=other"] == 97 * 11
    assert sum(key[0] == "agentkv_segment_lookups_total" for key in seen) <= 34


def test_labels_are_cut_and_never_empty() -> None:
    cap = LabelCap(10, max_length=4)
    assert [cap("abcdefgh"), cap(""), cap("abcdX")] == ["abcd", "unknown", "abcd"]


def test_the_route_shows_chats_and_how_they_ended(http: httpx.Client, service: FakeService) -> None:
    before = samples(http.get("/metrics").text)
    body = {"model": "fake/model", "messages": [{"role": "user", "content": "x" * 40}], "agent_hint": 'od"d\n{label}'}
    http.post("/v1/chat/completions", json=body)
    http.post("/v1/chat/completions", json=body | {"model": "other"})
    after = samples(http.get("/metrics").text)
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    assert grown["agentkv_requests_total", "outcome=stop"] == 1
    assert grown["agentkv_requests_total", "outcome=model_not_found"] == 1
    assert grown["agentkv_prompt_tokens_total", 'agent=od"d\n{label}', "source=computed"] == 10
    assert after["agentkv_kv_bytes", "tier=pool"] == 1024
    assert not any(":" in key[0] for key in after)


def test_metrics_outlive_the_service(http: httpx.Client, service: FakeService) -> None:
    service.close()
    after = samples(http.get("/metrics").text)
    assert ("agentkv_kv_bytes", "tier=pool") not in after
    assert any(key[0] == "agentkv_requests_total" for key in after)
