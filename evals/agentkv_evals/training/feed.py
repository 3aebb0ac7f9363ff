"""Fresh training rows without end: worker processes make them, a pool on the device is refreshed as they come."""

from __future__ import annotations

import multiprocessing as mp
import queue
import random
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from agentkv_evals.training.encode import Encoder, pack
from agentkv_evals.worlds.lessons import Level, lesson

SHARD_TOKENS = 64 * 1024


def make_shard(rng: random.Random, encoder: Encoder, level: Level, rows: int) -> np.ndarray:
    """`rows` rows of `level.tokens` + 1 tokens, [2, rows, tokens + 1]; lessons that do not fit are drawn again."""
    made = []
    while len(made) < rows:
        row = encoder.lesson(lesson(rng, level), level.tokens + 1)
        if row is not None:
            made.append(row)
    return pack(made, level.tokens + 1)


def _work(
    tokenizer_path: str, seed: str, levels: tuple[tuple[Level, ...], ...], stage: Synchronized, out: mp.Queue
) -> None:
    """A worker: shards of the present stage's levels in turn, for ever (the parent ends it)."""
    rng, encoder, count = random.Random(seed), Encoder(Tokenizer.from_file(tokenizer_path)), 0
    while True:
        now = stage.value
        level = levels[now][count % len(levels[now])]
        count += 1
        out.put((now, make_shard(rng, encoder, level, max(1, SHARD_TOKENS // level.tokens))))


@dataclass(slots=True)
class _Ring:
    """The rows of one length on the device; `filled` of them are there, the oldest are overwritten."""

    data: Tensor
    filled: int = 0
    cursor: int = 0

    def add(self, shard: Tensor) -> None:
        rows, size = shard.shape[1], self.data.shape[1]
        index = (torch.arange(rows, device=self.data.device) + self.cursor) % size
        self.data[:, index] = shard
        self.cursor = (self.cursor + rows) % size
        self.filled = min(size, self.filled + rows)


class Feed:
    """Owns the workers and the rings. `batch` draws rows at random from what is there."""

    def __init__(
        self,
        *,
        tokenizer_path: str,
        levels: tuple[tuple[Level, ...], ...],
        workers: int,
        seed: int,
        device: str,
        ring_tokens: int = 16 * 1024 * 1024,
    ) -> None:
        context = mp.get_context("spawn")
        self._stage = context.Value("i", 0)
        self._queue = context.Queue(maxsize=2 * workers)
        self._device, self._ring_tokens = device, ring_tokens
        self._rings: dict[int, _Ring] = {}
        self.rows_made = 0
        self._workers = [
            context.Process(
                target=_work, args=(tokenizer_path, f"train/{seed}/{i}", levels, self._stage, self._queue), daemon=True
            )
            for i in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def set_stage(self, stage: int) -> None:
        """Move to a stage: rows of earlier stages are dropped as soon as new ones arrive."""
        self._stage.value = stage
        self._rings.clear()

    def refresh(self, most: int = 4) -> None:
        """Take up to `most` finished shards of the present stage from the workers, without waiting."""
        for _ in range(most):
            try:
                stage, shard = self._queue.get_nowait()
            except queue.Empty:
                return
            if stage == self._stage.value:
                self._add(shard)

    def _add(self, shard: np.ndarray) -> None:
        tokens = shard.shape[2]
        if tokens not in self._rings:
            size = max(1, self._ring_tokens // tokens)
            self._rings[tokens] = _Ring(torch.zeros(2, size, tokens, dtype=torch.int64, device=self._device))
        self._rings[tokens].add(torch.from_numpy(shard.astype(np.int64)).to(self._device))
        self.rows_made += shard.shape[1]

    def batch(self, rows: int, tokens: int) -> Tensor:
        """[2, rows, tokens + 1]: ids and weight classes; waits only while there are too few rows to choose from."""
        while tokens + 1 not in self._rings or self._rings[tokens + 1].filled < rows:
            stage, shard = self._queue.get()
            if stage == self._stage.value:
                self._add(shard)
        ring = self._rings[tokens + 1]
        return ring.data[:, torch.randint(ring.filled, (rows,), device=self._device)]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()
