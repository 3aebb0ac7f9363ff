"""The benchmark of time to first token runs on CPU; what its figures mean is checked, not how large they are."""

import io
import json

import pytest
import torch
from rich.console import Console

from agentkv.errors import ConfigError, RemoteError
from agentkv_evals.bench.engine_cases import cases
from agentkv_evals.bench.engine_run import run_engine
from agentkv_evals.bench.model_pair import model_pair
from agentkv_evals.bench.peers_run import NUM_CLIENTS, run_peers
from agentkv_evals.bench.rates import Rates, floor_seconds
from agentkv_evals.bench.reuse_run import ReuseSettings, run_reuse
from agentkv_evals.bench.run import Settings, run_benchmark
from agentkv_evals.bench.ttft_plot import plot_ttft
from fakes import FakeService, running_server


def run_small(tmp_path, **options):
    file = tmp_path / "figures.json"
    defaults = {"benchmark": "ttft", "lengths": (256,), "ratios": (0.1,), "rounds": 1}
    settings = Settings(**defaults | options, shape="small", device="cpu", json_file=file)
    result = run_benchmark(settings, Console(file=io.StringIO()))
    assert json.loads(file.read_text(encoding="utf-8")) == result
    return result


def test_both_arms_are_measured_and_written(tmp_path) -> None:
    full, screened = run_small(tmp_path)["arms"]
    assert full["row_layers"] == full["row_layers_of_full"] == 256 * 4
    assert full["reused"] == 0
    assert screened["reused"] + screened["repaired"] + screened["computed"] == 256
    assert screened["computed"] == round(0.03 * 256)
    assert 0.1 < screened["row_layers"] / screened["row_layers_of_full"] < 0.2
    assert len(full["ttft_ms"]) == len(screened["ttft_ms"]) == 1
    assert len(screened["steps_ms_median"]) == 2  # probe, then the planned rows
    assert full["times_faster_median"] == 1


def test_a_run_is_drawn_and_other_files_are_refused(tmp_path) -> None:
    run_small(tmp_path)
    plot_ttft(tmp_path / "figures.json", tmp_path / "figures.svg")
    drawn = (tmp_path / "figures.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    for content in ("{}", "no json"):
        (tmp_path / "other.json").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"other\.json is no file of"):
            plot_ttft(tmp_path / "other.json", tmp_path / "other.svg")
    with pytest.raises(ConfigError, match="can't write"):
        plot_ttft(tmp_path / "figures.json", tmp_path)


def test_what_is_reused_comes_from_host_memory(tmp_path) -> None:
    full, here, from_host = run_small(tmp_path, from_host=True)["arms"]
    assert (full["restored"], here["restored"]) == (0, 0)
    assert from_host["restored"] == from_host["reused"] + from_host["repaired"] > 200
    assert from_host["row_layers"] == here["row_layers"]


def test_a_prompt_beyond_the_context_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="131072"):
        run_small(tmp_path, lengths=(131_072,))


def test_a_phase_takes_at_least_one_pass_over_the_weights() -> None:
    rates = Rates(flops=100.0, bytes=10.0)
    assert floor_seconds({"probe": 0, "rest": 1000}, 20, rates) == 10.0
    assert floor_seconds({"probe": 100, "rest": 1000}, 20, rates) == 12.0


def test_a_profile_names_steps_and_layers(tmp_path) -> None:
    result = run_small(tmp_path, profile_to=tmp_path)
    assert list(result["profiles"]["256-screened-0.1"]) == ["step 0", "step 1"]
    trace = (tmp_path / "256-screened-0.1-1.json").read_text(encoding="utf-8")
    assert '"layer 3"' in trace


def test_decode_is_timed_with_the_whole_batch_running(tmp_path) -> None:
    records = run_small(tmp_path, benchmark="decode", batches=(1, 3), lengths=(64,), tokens=2)["arms"]
    assert [record["batch"] for record in records] == [1, 3]
    assert [len(record["step_ms"]) for record in records] == [2, 2]
    assert records[1]["floor_ms"] > records[0]["floor_ms"]
    assert all(r["tokens_per_second"] == pytest.approx(1e3 * r["batch"] / r["step_ms_median"]) for r in records)


def test_five_agents_hold_one_thread_and_their_own_rows(tmp_path) -> None:
    result = run_small(tmp_path, benchmark="memory", lengths=(512,), ratios=(0.05,), threads=6)
    (held,) = result["held"]
    exact, screened = result["conversations"]
    assert held["repaired_share"] == pytest.approx(0.97 * 0.05, abs=0.005)
    a_block_each = 5 * 2 * 16 / 512
    assert 1 + 5 * held["repaired_share"] < held["copies"] < held["bound"] + a_block_each
    assert exact["conversations"] == 1
    assert screened["conversations"] >= 3


def test_wrong_options_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        run_benchmark(Settings(benchmark="ttft", shape="small", device="cuda"))
    with pytest.raises(ConfigError, match="one --length"):
        run_small(tmp_path, benchmark="decode", lengths=(64, 128))
    with pytest.raises(ConfigError, match="512"):
        run_small(tmp_path, benchmark="memory", lengths=(64,))


def test_the_engine_and_transformers_do_the_same_work(monkeypatch: pytest.MonkeyPatch, small_model) -> None:
    monkeypatch.setattr("agentkv_evals.bench.model_pair.model_directory", lambda: small_model("llama"))
    with model_pair("embedded", max_sequences=4, seed=0) as pair:
        prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [3]]
        ours, theirs = pair.ours(prompts, [4, 6, 5]), pair.theirs(prompts, 6)
        assert [list(reply) for reply in ours] == [theirs[0][:4], theirs[1], theirs[2][:5]]
        assert {case.name for case in cases(pair, num_tokens=4, seed=0)} >= {"decode, batch 8", "prefill, 4096 tokens"}


def test_a_step_is_profiled_by_phase(monkeypatch: pytest.MonkeyPatch, small_model) -> None:
    monkeypatch.setattr("agentkv_evals.bench.model_pair.model_directory", lambda: small_model("llama"))
    threads = torch.get_num_threads()
    content = run_engine(
        shape="embedded",
        names=[],
        tokens=64,
        rounds=1,
        threads=threads,
        profile=True,
        seed=0,
        json_file=None,
        console=Console(file=io.StringIO()),
    )
    phases = content["phases_s"]
    assert phases.keys() == {"schedule", "inputs", "forward", "sample", "update", "step"}
    assert sum(phases.values()) - phases["step"] <= phases["step"]
    assert 0 < content["outside_tensor_work"] < 1


def test_peers_get_the_same_prompts() -> None:
    def ask(service: FakeService, *urls: str) -> list[dict]:
        options = {"models": [], "num_words": 5, "num_tokens": 4, "rounds": 2, "seed": 0, "json_file": None}
        return run_peers(urls=urls, **options, console=Console(file=io.StringIO()))

    first, second = FakeService(), FakeService()
    with running_server(first) as one, running_server(second) as other:
        records = ask(first, one, f"{other}/v1/")
        assert [record["url"] for record in records] == [one, other]
        assert all(len(record["cold_ms"]) == len(record["tokens_s"]) == 2 for record in records)
        prompts = [sorted(request.messages[0].content for request in service.requests) for service in (first, second)]
        assert prompts[0] == prompts[1]
        assert len(prompts[0]) == 3 * (2 + NUM_CLIENTS)
        first.script = lambda request: []
        with pytest.raises(RemoteError, match="gave no text"):
            ask(first, one)
    with pytest.raises(RemoteError, match="did not answer"):
        ask(first, one)


def test_reuse_tells_where_the_time_before_the_rows_goes(tmp_path) -> None:
    file = tmp_path / "figures.json"
    settings = ReuseSettings(
        shape="small",
        length=400,
        trace_file=None,
        num_traces=1,
        selector="query_attention(0.2)",
        dtype="float32",
        rounds=1,
        threads=1,
        kv_memory="64MiB",
        seed=0,
    )
    out = io.StringIO()
    result = run_reuse(settings, json_file=file, console=Console(file=out))
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    (turns,) = result["loads"].values()
    assert [turn["agent"] for turn in turns[:3]] == ["researcher_1", "researcher_2", "researcher_3"]
    assert all(turn["reused"] == 0 for turn in turns[:3])
    critic = turns[3]
    assert critic["reused"] > critic["repaired"] > 0
    assert all(seconds > 0 for seconds in critic["phases_s"][0].values())
    assert sum(critic["shares"].values()) < 1
    assert "at most 5% is wanted" in out.getvalue()
