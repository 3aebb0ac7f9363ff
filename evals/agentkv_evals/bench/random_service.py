"""A whole service over random weights: fair for speed, never for quality."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from agentkv.config import ServiceConfig
from agentkv.embedded import model_directory
from agentkv.keeper import Keeper
from agentkv.segment import Recognizer
from agentkv.service import Service
from agentkv.tokenization import ChatTokenizer
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_evals.bench.shapes import SHAPES, random_decoder


@contextmanager
def random_service(
    shape: str, config: ServiceConfig, *, dtype: torch.dtype, seed: int
) -> Iterator[tuple[Service, ChatTokenizer]]:
    """A service of one of `SHAPES` and its tokenizer: the repository's, with a vocabulary of its size."""
    tokenizer = ChatTokenizer.from_directory(model_directory())
    recognizer = Recognizer(min_tokens=config.min_segment_tokens)
    policy = Keeper.eviction_policy()
    keeper = Keeper(recognizer, policy)
    engine = Engine(
        random_decoder(
            replace(SHAPES[shape], vocab_size=tokenizer.num_tokens), dtype=dtype, device=config.device, seed=seed
        ),
        EngineConfig(
            kv_memory=config.kv_memory,
            host_kv_memory=config.host_kv_memory,
            max_rows_per_step=config.max_rows_per_step,
            max_sequences=config.max_sequences,
            device=config.device,
            dtype=dtype,
            trace_layers=tuple(range(1, 1 + config.trace_layers)),
        ),
        revision=f"random {shape}",
        eviction=policy,
        on_evict=keeper.evicted,
        on_missing=keeper.missing,
    )
    keeper.attach(engine, max_bytes=config.kv_memory)
    model_id = f"random {shape}"
    with Service(engine, tokenizer, config, model_id=model_id, keeper=keeper, recognizer=recognizer) as service:
        yield service, tokenizer
