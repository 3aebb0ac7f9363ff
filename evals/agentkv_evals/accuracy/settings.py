"""What a comparison measures, from the options of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentkv.config import ServiceConfig
from agentkv.errors import InvalidRequest
from agentkv.hub import find_model
from agentkv_evals.accuracy.arms import OURS, PEERS, Arm, make_arms, parse_ratios
from agentkv_evals.accuracy.tasks.sources import TaskOptions
from agentkv_evals.accuracy.tasks.task import TaskSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        model: directory of a model.
        task: where the items come from.
        arms: beside full prefill.
        device: where the model runs.
        batch: most requests at once.
        kv_memory: bytes of KV.
        trace_layers: see `ServiceConfig`.
        out: folder of the results, made if need be; a run that was broken off goes on there.
    """

    model: Path
    task: TaskSource
    arms: Sequence[Arm]
    device: str
    batch: int
    kv_memory: int
    trace_layers: int
    out: Path

    @classmethod
    def of(
        cls,
        *,
        model: Path | None = None,
        task: TaskOptions | None = None,
        rules: Iterable[str] | None = None,
        ratios: str | None = None,
        peers: bool = True,
        device: str | None = None,
        batch: int = 16,
        kv_memory: str = "2GiB",
        out: Path,
    ) -> Settings:
        """The options of `agentkv eval accuracy`; see the command.

        Raises:
            AgentKVError: an option that can't be used; the message says what can.
        """
        chosen = [OURS] if rules is None else list(rules)
        arms = make_arms([*(PEERS if peers else ()), *chosen], parse_ratios(ratios))
        if not arms:
            raise InvalidRequest("no rule to compare: give --selector, or leave --no-peers out", param="selector")
        service = ServiceConfig.from_values(kv_memory=kv_memory, device=device, max_sequences=batch)
        return cls(
            model=find_model(model),
            task=(task or TaskOptions()).source(),
            arms=arms,
            device=service.device,
            batch=batch,
            kv_memory=int(service.kv_memory),
            trace_layers=service.trace_layers,
            out=out,
        )
