"""Books that callers' labels fill: they stay bounded."""

from typing import Any

from agentkv.agent_statistics import AgentStatistics
from agentkv.api import ReuseUsage, Usage
from agentkv.segment_records import MOST_THREADS, Origin, SegmentRecords
from agentkv.store.store import SegmentKey


def test_a_segment_that_every_thread_reads_remembers_some() -> None:
    records, nothing = SegmentRecords(), Any
    key = SegmentKey(tenant="0\x1f\x1f", segment_id="1")
    records.add(key, nothing, 1, Origin(agent="a", thread="thread 0"))  # type: ignore[arg-type]
    for number in range(10 * MOST_THREADS):
        records.read(key, Origin(agent="a", thread=f"thread {number}"))
    (record,) = records.of_tenant("")
    assert len(record.threads) == MOST_THREADS
    assert "thread 0" in record.threads
    assert record.num_reads == 10 * MOST_THREADS


def test_an_agent_that_reads_everybody_s_words_has_some_authors_and_others() -> None:
    statistics = AgentStatistics(max_agents=3)
    for number in range(10):
        reuse = ReuseUsage(agent="reader", authors={f"author {number % 5}": 2})
        statistics.observe("", Usage(prompt_tokens=2, completion_tokens=1, reuse=reuse))
    assert statistics.of("")["reader"]["authors"] == {"author 0": 4, "author 1": 4, "author 2": 4, "other": 8}
