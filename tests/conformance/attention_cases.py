"""Sequences over random keys anywhere in a pool, for the back ends' conformance tests."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from agentkv_engine.attention.backend import AttentionBackend
from agentkv_engine.attention.rows import SequenceRows
from agentkv_engine.attention.sdpa import SdpaBackend
from agentkv_engine.cache.kv_pool import KVPool
from agentkv_engine.model.model_config import RopeConfig
from agentkv_engine.model.rope import RotaryEmbedding

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Heads:
    """A model's attention shape and rotary embedding."""

    heads: int = 4
    kv_heads: int = 1
    dim: int = 64
    rope_type: str = "default"

    def rope(self, device: str) -> RotaryEmbedding:
        parameters = {"llama3": LLAMA3, "yarn": YARN}.get(self.rope_type, {})
        config = RopeConfig(rope_type=self.rope_type, theta=10_000.0, parameters=parameters)
        return RotaryEmbedding(config, self.dim).to(device)


class Case:
    """Sequences over one pool of random keys, built piece by piece."""

    def __init__(self, seed: int, num_slots: int = 4096) -> None:
        self.random = np.random.default_rng(seed)
        self.sequences: list[SequenceRows] = []
        self.num_slots = num_slots
        self.num_rows = 0

    def add(self, positions, runs: list[tuple[int, int]]) -> "Case":
        """A sequence with these rows; its keys come in runs of (length, offset), in random slots."""
        count = sum(length for length, _ in runs)
        positions = np.asarray(positions, dtype=np.int64)
        self.sequences.append(
            SequenceRows(
                rows=np.arange(self.num_rows, self.num_rows + len(positions)),
                positions=positions,
                key_slots=self.random.permutation(self.num_slots)[:count],
                key_positions=np.arange(count),
                key_offsets=np.concatenate([np.full(length, offset) for length, offset in runs]),
            )
        )
        self.num_rows += len(positions)
        return self

    def scatter(self, count: int, below: int):
        """Random ascending positions, the last one among them."""
        return np.sort(np.append(self.random.permutation(below - 1)[: count - 1], below - 1))

    def mix_rows(self) -> "Case":
        """Let the sequences' rows lie among each other in the step, as rows of several depths do."""
        place = self.random.permutation(self.num_rows)
        self.sequences = [
            SequenceRows(
                rows=np.sort(place[s.rows]),
                positions=s.positions,
                key_slots=s.key_slots,
                key_positions=s.key_positions,
                key_offsets=s.key_offsets,
            )
            for s in self.sequences
        ]
        return self


def decode() -> Case:
    case = Case(1)
    for length in (1, 7, 130, 700):
        case.add([length - 1], [(length, 0)])
    return case.add([650], [(50, 0), (33, 17), (400, -3000), (168, 5)])


def prefill() -> Case:
    return Case(2).add(np.arange(150), [(150, 0)]).add(np.arange(100, 170), [(170, 0)]).add([0, 1, 2], [(3, 0)])


def screened() -> Case:
    """Scattered rows over several runs, offsets of both signs and beyond the keys."""
    case = Case(3)
    case.add(case.scatter(60, 900), [(13, 0), (301, 40), (1, 0), (285, -77), (300, 100_000)])
    case.add(case.scatter(5, 64), [(31, -4), (33, 9)])
    return case.mix_rows()


def many_runs() -> Case:
    case = Case(4)
    runs = [(int(length), int(offset)) for length, offset in case.random.integers(1, 40, (20, 2)) * (1, -50)]
    return case.add(case.scatter(40, sum(length for length, _ in runs)), runs)


def mixed() -> Case:
    """Decodes, a chunk and scattered rows in one step; one sequence's rows see only its first keys."""
    case = Case(5).add([511], [(512, 0)]).add(np.arange(64, 128), [(60, 3), (68, 0)])
    return case.add(case.scatter(30, 200), [(200, 12)]).add([3, 9, 11], [(600, -1)])


def unsorted_depths() -> Case:
    """Rows of two depths: ascending positions twice, and keys with holes before the rows."""
    case = Case(6).add([40, 50, 90, 10, 60, 99], [(30, 0), (70, 21)])
    sequence = case.sequences[0]
    kept = np.flatnonzero(np.isin(np.arange(100), [5, 6, 70], invert=True))
    case.sequences[0] = SequenceRows(
        rows=sequence.rows,
        positions=sequence.positions,
        key_slots=sequence.key_slots[kept],
        key_positions=kept,
        key_offsets=sequence.key_offsets[kept],
    )
    return case


def in_place() -> Case:
    """Keys that lie side by side: decodes, prompts, chunks, and a chunk of a sequence that reads others' keys."""
    case = Case(7)
    for first, positions, runs in (
        (5, [99], [(100, 0)]),
        (900, np.arange(40), [(40, 0)]),
        (1000, np.arange(60, 190), [(190, 0)]),
        (2000, np.arange(70, 90), [(50, 0), (40, 30)]),
        (3000, [310], [(300, 0), (11, 5)]),
        (110, [2], [(3, 0)]),
    ):
        case.add(positions, runs)
        count = sum(length for length, _ in runs)
        case.sequences[-1] = replace(case.sequences[-1], key_slots=np.arange(first, first + count))
    return case


def decodes_in_place() -> Case:
    """Nothing but decodes, as a step mostly is."""
    case = Case(8)
    for number, length in enumerate((1, 16, 130, 700, 64)):
        case.add([length - 1], [(length, 0)])
        case.sequences[-1] = replace(case.sequences[-1], key_slots=np.arange(800 * number, 800 * number + length))
    return case


def filled_pool(heads: Heads, num_slots: int, dtype: torch.dtype, device: str) -> KVPool:
    pool = KVPool(
        num_layers=2,
        num_blocks=num_slots // 16,
        num_kv_heads=heads.kv_heads,
        head_dim=heads.dim,
        dtype=dtype,
        device=device,
    )
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        k, v = (torch.randn(num_slots, *pool.head_shape, generator=generator).to(device, dtype) for _ in "kv")
        pool.write(layer, torch.arange(num_slots, device=device), k, v)
    return pool


def both(
    case: Case, heads: Heads, dtype: torch.dtype, backend: AttentionBackend, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the oracle gives in float32 of the same numbers, and what the back end gives."""
    pool = filled_pool(heads, case.num_slots, dtype, device)
    exact = filled_pool(heads, case.num_slots, torch.float32, device)
    for layer in range(2):
        slots = torch.arange(case.num_slots, device=device)
        exact.write(layer, slots, *(x.float() for x in pool.read(layer, slots)))
    generator = torch.Generator().manual_seed(1)
    q_AHD = torch.randn(case.num_rows, heads.heads, heads.dim, generator=generator).to(device, dtype)
    oracle = SdpaBackend(heads.rope(device), device)
    expected = oracle.attend(q_AHD.float(), 1, exact, oracle.prepare(case.sequences))
    return expected, backend.attend(q_AHD, 1, pool, backend.prepare(case.sequences)).float()


CASES = [decode, prefill, screened, many_runs, mixed, unsorted_depths, in_place, decodes_in_place]
