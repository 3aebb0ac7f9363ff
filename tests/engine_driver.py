"""Drives an engine to the end of its requests, for tests."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from agentkv_engine.engine import Engine
from agentkv_engine.errors import EngineError
from agentkv_engine.request import FinishReason, Request, TokenSources

VOCABULARY_SIZE = 460


@dataclass(slots=True)
class Answer:
    """All that an engine gave for one request."""

    token_ids: tuple[int, ...] = ()
    parts: list[torch.Tensor] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    sources: TokenSources | None = None
    error: EngineError | None = None

    @property
    def logits(self) -> torch.Tensor:
        """Logits behind every token."""
        return torch.cat(self.parts)


def prompt_of(length: int, *, seed: int) -> tuple[int, ...]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, VOCABULARY_SIZE, (length,), generator=generator).tolist())


def steps(engine: Engine, answers: dict[str, Answer]) -> Iterator[None]:
    """Step until nothing is left, checking integrity after every step and collecting what comes."""
    while engine.has_work:
        for output in engine.step():
            answer = answers.setdefault(output.request_id, Answer())
            answer.token_ids += output.token_ids
            if output.logits is not None:
                answer.parts.append(output.logits)
            answer.finish_reason = output.finish_reason or answer.finish_reason
            answer.sources = output.sources or answer.sources
            answer.error = output.error
        engine.check()
        yield


def run(engine: Engine, *requests: Request) -> dict[str, Answer]:
    """Answers of these requests, run together."""
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add(request)
    for _ in steps(engine, answers):
        pass
    return answers
