"""`agentkv demo`, once its options are read: run the graph twice, measure, print, write."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from agentkv.api import Reuse
from agentkv.config import ServiceConfig
from agentkv.embedded import is_trained, model_directory
from agentkv.errors import ConfigError
from agentkv.service import Service
from agentkv_evals.comparison.arms import warm_up
from agentkv_evals.comparison.environment import environment
from agentkv_evals.demo.case import Case, harbour_case, world_case
from agentkv_evals.demo.graph import build_graph
from agentkv_evals.demo.measure import AgentFigures, measure
from agentkv_evals.demo.recording import RecordingService
from agentkv_evals.demo.show import caption, changed_notice, memory_table, tokens_table, untrained_notice
from agentkv_evals.demo.stream import run_graph
from langchain_agentkv import ChatAgentKV

_ROUNDS = 3
_WORLD_SEED = 0


def run_demo(*, model: Path, selector: str | None, json_file: Path | None, console: Console) -> None:
    """Run the application without and with reuse and print what reuse did.

    Raises:
        AgentKVError: what is wrong with the model or a setting.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    trained = is_trained(model)
    case = choose_case(model, trained=trained)
    config = ServiceConfig.from_values(selector=selector)
    if not trained:
        console.print(untrained_notice())
    with Service.open(model, config) as service:
        with console.status("warming up"):
            warm_up(service)
        recording, seconds, changed = _run_twice(case, service, config.selector, console)
        agents = [agent.name for agent in case.agents]
        with console.status("measuring: every prompt once more, one at a time"):
            figures = measure(service, recording.exchanges, agents, config.selector, _ROUNDS)
        model_id = service.model_id
    for part in (tokens_table(figures), memory_table(figures), caption(config.selector, _ROUNDS)):
        console.print(part)
    if changed:
        console.print(changed_notice(changed, config.selector))
    if json_file is not None:
        head = {"model": model_id, "trained": trained, "selector": config.selector, "seconds": seconds}
        head |= {"changed_replies": changed}
        content = head | {"environment": environment(), "agents": [_to_json(each) for each in figures]}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def choose_case(model: Path, *, trained: bool) -> Case:
    """What the agents work on: the repository's model, once trained, reads what it was trained to read; another trained
    model writes about the authored document; an untrained one gets the authored replies as well."""
    if trained and model.resolve() == model_directory().resolve():
        return world_case(_WORLD_SEED)
    return harbour_case(authored=not trained)


def _run_twice(
    case: Case, service: Service, selector: str, console: Console
) -> tuple[RecordingService, dict[str, float], list[str]]:
    """Full prefill, then screened reuse; returns what the first one asked and answered, the seconds of both, and the
    agents whose replies are not the same."""
    recording = RecordingService(service)
    seconds: dict[str, float] = {}
    said: dict[str, str] = {}
    first: dict[str, str] = {}
    titles = {Reuse.OFF: "full prefill", Reuse.SCREENED: f"reuse, {selector}"}
    for reuse, title in titles.items():
        console.rule(f"[bold]{case.title}[/] ({title})" if not said else f"[bold]the same agents[/] ({title})")
        chat = ChatAgentKV(
            service=recording if reuse is Reuse.OFF else service,
            reuse=reuse,
            selector=selector,
            cache_salt=f"demo-{reuse}",
            max_tokens=case.max_tokens,
        )
        started = time.perf_counter()
        first, said = said, run_graph(build_graph(case, chat), console, known=said)
        seconds[str(reuse)] = time.perf_counter() - started
        console.print(f"five agents in {seconds[str(reuse)]:.1f} s ({title})", style="green", highlight=False)
    return recording, seconds, [agent for agent, reply in said.items() if reply != first[agent]]


def _to_json(each: AgentFigures) -> dict[str, Any]:
    reuse = asdict(each.usage.reuse)
    tokens = {"prompt": each.usage.prompt_tokens}
    tokens |= {source: reuse[source] for source in ("prefix", "reused", "repaired", "computed")}
    return {
        "agent": each.agent,
        "tokens": tokens,
        "row_layers": reuse["row_layers"],
        "full_row_layers": reuse["full_row_layers"],
        "misses": reuse["misses"],
        "ttft": {"full": each.ttft_full, "reuse": each.ttft_reuse, "ratio": each.ttft_ratio},
        "kv_bytes": {"alone": each.bytes_alone, "shared": each.bytes_shared},
        "positions": each.fidelity.positions,
        "agreement": each.fidelity.agreement,
        "mean_kl": each.fidelity.mean_kl,
    }
