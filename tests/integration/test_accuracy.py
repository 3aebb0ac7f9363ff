"""`agentkv eval accuracy` with the embedded model on a small slice: it tells careless reuse from full repair."""

import io
import json

import pytest
from rich.console import Console

from agentkv.errors import ConfigError
from agentkv_evals.accuracy import run as accuracy
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.summary import summarise
from agentkv_evals.accuracy.tasks.sources import TaskOptions


def settings(out, **changes) -> Settings:
    task = {"families": "chain", "depths": "2", "items": 8}
    task |= {name: changes.pop(name) for name in list(changes) if name in TaskOptions.__slots__}
    options = {"task": TaskOptions(**task), "peers": False, "rules": ["repair_none", "repair_all"]}
    return Settings.of(out=out, **{**options, **changes})


def measure(wanted: Settings) -> tuple[list[Row], str]:
    console = Console(file=io.StringIO(), width=100)
    rows = accuracy.run_accuracy(wanted, console)
    assert isinstance(console.file, io.StringIO)
    return rows, console.file.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("accuracy")
    return out, *measure(settings(out))


def test_careless_reuse_fails_and_full_repair_does_not(measured):
    _, rows, _ = measured
    full, careless, repaired = summarise(rows)
    assert (full.items, full.work) == (8, None)
    assert full.accuracy >= 0.75
    assert careless.exact < 0.6
    assert careless.accuracy < full.accuracy
    assert careless.work == 0
    assert careless.fidelity.mean_kl > 0.05
    assert repaired.exact == 1
    assert repaired.accuracy == full.accuracy
    assert repaired.fidelity.mean_kl < 1e-5
    assert repaired.work == pytest.approx(1)


def test_work_and_fresh_rows_are_told_apart(measured):
    _, rows, _ = measured
    for row in rows:
        assert row.layers == 10
        if row.arm == "full":
            assert row.fresh == row.prompt * row.layers
        else:
            assert row.fresh == (row.prompt - row.reused) * row.layers
            assert row.fallbacks.keys() <= {"not_worth", "wants_all"}


def test_results_are_rows_tables_and_a_page(measured):
    out, rows, shown = measured
    lines = [json.loads(line) for line in (out / accuracy.ROWS_FILE).read_text().splitlines()]
    assert len(lines) == len(rows) == 8 * 3
    assert {"task_version", "model_hash", "commit", "code", "cpus"} <= lines[0]["run"].keys()
    assert "repair_none" in shown
    assert "data:image/svg+xml;base64," in (out / accuracy.REPORT_FILE).read_text()


def test_a_run_goes_on_where_it_ended(measured, monkeypatch):
    out, rows, _ = measured
    asked = []
    grade = accuracy.Grader.grade
    monkeypatch.setattr(accuracy.Grader, "grade", lambda self, asks: asked.extend(asks) or grade(self, asks))
    assert measure(settings(out))[0] == rows
    assert asked == []
    more, _ = measure(settings(out, items=9, rules=["repair_none"]))
    assert [(ask.seed, [arm.name for arm in ask.arms]) for ask in asked] == [(200_008, ["repair_none"])]
    assert len(more) == 9 * 2
    assert [row for row in more if row.seed < 200_008] == [row for row in rows if row.arm != "repair_all"]


def test_full_repair_is_exact_where_every_author_saw_all(tmp_path):
    rows, _ = measure(settings(tmp_path, topology="chain", items=4, rules=["repair_all"]))
    full, repaired = summarise(rows)
    assert full.items == repaired.items == 4
    assert repaired.exact == 1


def test_a_reply_is_passed_on_with_the_keys_of_its_own_arm(tmp_path):
    wanted = settings(tmp_path, items=3, hops=3)
    rows, shown = measure(wanted)
    assert [row.hop for row in rows if row.arm == "full"] == [1, 2, 3] * 3
    repaired = [row for row in rows if row.arm == "repair_all"]
    assert all(row.exact for row in repaired)
    first, second = (next(row for row in repaired if row.hop == hop) for hop in (1, 2))
    assert second.messages == first.messages + 1
    assert second.reused > first.reused
    assert "by hop" in shown
    assert measure(wanted)[0] == rows


def test_an_evicted_message_is_no_result(tmp_path):
    with pytest.raises(ConfigError, match="raise --kv-memory"):
        measure(settings(tmp_path, kv_memory="24MiB", batch=16, rules=["repair_none"]))


def test_a_model_with_other_words_is_refused(tmp_path, small_model):
    with pytest.raises(ConfigError, match=r"tokenizer"):
        measure(settings(tmp_path, model=small_model("qwen2")))
