"""`agentkv replay`, once its options are read: load, play, print, write."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agentkv.api import Reuse
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError
from agentkv.service import Service
from agentkv.tokenization import ChatTokenizer
from agentkv_evals.comparison.arms import warm_up
from agentkv_evals.comparison.environment import environment
from agentkv_evals.replay.replay import Played, Replay
from agentkv_evals.replay.report import to_json
from agentkv_evals.replay.show import LEGEND, exactness, progress_bar, table
from agentkv_evals.replay.trace import Trace, read_traces
from agentkv_evals.replay.turns import Turn


def run_replay(
    trace_file: Path,
    *,
    model: Path,
    modes: Sequence[Reuse],
    selector: str | None,
    num_turns: int | None,
    max_context: int,
    num_traces: int | None,
    kv_memory: str | None,
    json_file: Path | None,
    console: Console,
) -> None:
    """Replay a file of conversations.

    Raises:
        AgentKVError: what is wrong with the file, the model or a setting.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"can't write {json_file}: make the folder {json_file.parent} first")
    traces = read_traces(trace_file)[:num_traces]
    started = time.perf_counter()
    config = ServiceConfig.from_values(kv_memory=kv_memory, selector=selector)
    tokenizer = ChatTokenizer.from_directory(model)
    with Service.open(model, config) as service:
        limit = min(max_context, service.context_length)

        def fits(turn: Turn) -> bool:
            prompt = tokenizer.prompt(turn.prompt)
            return len(prompt.token_ids) + len(tokenizer.encode(turn.reply)) + 1 <= limit

        replay = Replay(service, modes=modes, fits=fits, selector=selector, num_turns=num_turns)
        warm_up(service)
        played = _play_all(replay, traces, console)
        model_id = service.model_id
    _print_total(played, replay.modes, console)
    if json_file is not None:
        settings = {
            "file": trace_file.name,
            "num_turns": num_turns,
            "max_context": limit,
            "selector": config.selector,
            "kv_memory": int(config.kv_memory),
            "seconds": round(time.perf_counter() - started, 1),
        }
        content = {"model": model_id, "settings": settings, "environment": environment()}
        json_file.write_text(json.dumps(content | to_json(played, replay.modes), indent=2) + "\n", encoding="utf-8")


def _play_all(replay: Replay, traces: Sequence[Trace], console: Console) -> list[Played]:
    played = []
    console.print(LEGEND, style="dim")
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(len(replay.turns(trace)) for trace in traces))
        for trace in traces:
            progress.update(task, description=trace.id)
            played.append(replay.play(trace, on_turn=lambda: progress.advance(task)))
            console.print(table(trace.id, played[-1:], replay.modes))
    return played


def _print_total(played: Sequence[Played], modes: Sequence[Reuse], console: Console) -> None:
    console.print(table(f"{len(played)} conversations", played, modes))
    if Reuse.EXACT in modes:
        console.print(exactness(played))
