"""A request on its way through the engine: its tokens, its keys, and the rows it still has to compute."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import torch

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import NO_SLOT, KeyTable
from agentkv_engine.cache.prefix_index import BlockChain
from agentkv_engine.config import BLOCK_SIZE
from agentkv_engine.model.pooled import PooledStates
from agentkv_engine.request import FinishReason, Request, TokenSources
from agentkv_engine.reuse import PlacedSpan, Probe, RepairPlan, ReuseView, Watch
from agentkv_engine.sampling.result import TokenLogprobs
from agentkv_engine.sampling.state import SamplingState


class Phase(Enum):
    """What a sequence is waiting for."""

    WAITING = auto()
    PROBING = auto()
    COMPUTING = auto()
    DRAFTING = auto()
    AMENDING = auto()
    FINISHED = auto()


NOT_OBSERVED, OBSERVED = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one sequence, in order of position: positions, depths, and whether their attention is observed."""

    positions: np.ndarray
    depths: np.ndarray
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> "Rows":
        first, end, _ = part.indices(len(self.positions))
        if first >= end:
            return NO_ROWS
        if end - first == len(self.positions):
            return self
        return Rows(self.positions[part], self.depths[part], self.observed[part])

    @classmethod
    def of(cls, positions: np.ndarray, depths: np.ndarray, observed: np.ndarray | None = None) -> "Rows":
        """Rows that nobody observes, unless said."""
        seen = np.zeros(len(positions), dtype=bool) if observed is None else observed
        return cls(positions.astype(np.int64), depths.astype(np.int64), seen)

    @classmethod
    def one(cls, position: int, depth: int, *, observed: bool = False) -> "Rows":
        """A single row."""
        return cls(np.array([position]), np.array([depth]), OBSERVED if observed else NOT_OBSERVED)


NO_ROWS = Rows.of(np.empty(0), np.empty(0))


class PrivateSlots:
    """Slots that a sequence may write, taken from the pool block by block."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self._unused: list[int] = []

    def take(self, num: int) -> np.ndarray | None:
        """The next `num` slots; None (and nothing taken) where the pool has no blocks for them."""
        if num == 1 and self._unused:
            return np.array([self._unused.pop(0)])
        missing = -(-max(num - len(self._unused), 0) // BLOCK_SIZE)
        last = self.blocks[-1] if self.blocks else None
        blocks = self._pool.allocate(missing, behind=last) if missing else []
        if blocks is None:
            return None
        self.blocks += blocks
        self._unused += [block * BLOCK_SIZE + slot for block in blocks for slot in range(BLOCK_SIZE)]
        taken, self._unused = self._unused[:num], self._unused[num:]
        return np.asarray(taken, dtype=np.int64)

    def release(self) -> None:
        """Unpin all blocks."""
        self._pool.unpin(self.blocks)
        self.blocks, self._unused = [], []


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What one probe leaves: the queries of its rows, in order of position, [probe depth, rows, heads, head_dim]."""

    probe: Probe
    queries_LRHD: torch.Tensor

    @property
    def positions(self) -> np.ndarray:
        """Its rows' positions, ascending."""
        return np.asarray(self.probe.positions, dtype=np.int64)

    def row_of(self, positions_N: np.ndarray) -> np.ndarray:
        """Where these rows stand in the record."""
        return np.searchsorted(self.positions, positions_N)


@dataclass(slots=True)
class ProbeState:
    """Probes for one plan: rows that stand on reused keys borrow scratch slots; all leave their queries.

    Attributes:
        scratch: slots that are given back when the plan is made.
        records: of the probes asked for so far; the last may be running.
        leading_depth: layers through which the fresh rows before the first span have run.
        borrowed_N, shared_slots_KN: positions on reused keys, and the slots to put back there.
    """

    scratch: PrivateSlots
    records: list[ProbeRecord] = field(default_factory=list)
    leading_depth: int = 0
    borrowed_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    shared_slots_KN: np.ndarray | None = None

    def begin(self, record: ProbeRecord, borrowed_N: np.ndarray, shared_slots_KN: np.ndarray) -> None:
        """One more probe, none of whose rows has been named before."""
        self.records.append(record)
        self.borrowed_N = np.concatenate([self.borrowed_N, borrowed_N])
        known = self.shared_slots_KN
        self.shared_slots_KN = shared_slots_KN if known is None else np.concatenate([known, shared_slots_KN], axis=1)

    def names(self, positions_N: np.ndarray) -> np.ndarray:
        """Which of these positions are rows of a probe."""
        return np.isin(positions_N, [position for record in self.records for position in record.probe.positions])

    def shared_slots(self, positions_N: np.ndarray) -> np.ndarray:
        """Slots [K, N] of the kept keys of reused rows that a probe has run."""
        assert self.shared_slots_KN is not None
        order = np.argsort(self.borrowed_N)
        return self.shared_slots_KN[:, order[np.searchsorted(self.borrowed_N, positions_N, sorter=order)]]


@dataclass(slots=True)
class Residence:
    """What a running sequence holds in the pool. Made at admission, gone at preemption.

    Attributes:
        table: positions to slots.
        private: slots it writes; `own_P` says which position has which.
        shared_blocks: blocks of others that it has pinned.
        view: prefix and spans as they were found, up to the prompt's end: what the selector is shown.
        num_exact: leading positions that an exact prefix hit covers; beyond the prompt's end after a preemption.
        reused: all that is read beside it: hits of the screened prefix, and spans.
        depths_P: depth spent on each known position, once the plan is made.
        exact_until: positions before it are exact.
        hops: of its rows that are not exact.
        num_indexed: leading blocks that are in the prefix index.
        watch: what goes on looking at its rows, once the plan is made.
        unseen: what rows have left that the watch has not seen yet: those of a draft are seen together.
        draft_logits: those so far of the rows whose tokens do not count yet, while they run again.
    """

    table: KeyTable
    private: PrivateSlots
    own_P: np.ndarray
    shared_blocks: list[int]
    view: ReuseView
    num_exact: int
    reused: tuple[PlacedSpan, ...]
    depths_P: np.ndarray
    exact_until: int = 0
    hops: int = 0
    num_indexed: int = 0
    probe: ProbeState | None = None
    watch: Watch | None = None
    unseen: list[ProbeRecord] = field(default_factory=list)
    draft_logits: list[torch.Tensor] = field(default_factory=list)

    def mean_depths(self, first: int, end: int) -> list[int]:
        """Mean depth spent on the positions of blocks [first, end), rounded down; what was generated is of full
        depth."""
        depths_N = np.full((end - first) * BLOCK_SIZE, self.view.num_layers, dtype=np.int64)
        planned = self.depths_P[first * BLOCK_SIZE : end * BLOCK_SIZE]
        depths_N[: len(planned)] = planned
        return (depths_N.reshape(-1, BLOCK_SIZE).sum(1) // BLOCK_SIZE).tolist()

    def own_slots(self, positions_N: np.ndarray) -> np.ndarray:
        """Private slot of each position, NO_SLOT where it has none yet."""
        self.make_room(int(positions_N.max(initial=-1)) + 1)
        return self.own_P[positions_N]

    def make_room(self, size: int) -> None:
        """Let `own_P` have so many positions."""
        if size > len(self.own_P):
            self.own_P = np.pad(
                self.own_P, (0, max(size, 2 * len(self.own_P)) - len(self.own_P)), constant_values=NO_SLOT
            )


@dataclass(slots=True, eq=False)
class Sequence:
    """Progress of one request. Computed rows chase known tokens: no prefill phase, no decode phase.

    Attributes:
        sampling: what sampling remembers of it.
        prompt_key: equal for requests that may share the KV of their whole prompt; None shares with nobody.
        token_ids: prompt and everything emitted since (all forced tokens, once the prompt is done, unless watched), and
            what is drafted.
        queue: rows still to be scheduled, in order.
        num_under_way: steps that hold rows of it and whose results are not in yet.
        plan: frozen once made, for the rows of `planned_spans`, but for what its watch adds; survives preemption while
            no others are read.
        spans: spans that may still be read.
        restored: handles that were brought back into the pool for it.
        reuse_given_up: there was no room for what it reads beside what it writes: full prefill.
        num_emitted: tokens given out so far.
        watch_is_over: its watch had nothing more to say.
        num_drafted: tokens at the end that may not count; none while it waits.
        num_to_draft: tokens that are still to be drafted.
        num_computed: leading positions that have final keys.
        prompt_logprobs: of the prompt's tokens so far, from its second on; survive a preemption.
        states: the mean of the prompt's last hidden states so far, where it is asked for instead of tokens.
        blocks: digests of its blocks, once they were asked for.
        admitted_at: when its first admission that succeeded began, as `time.perf_counter()`.
    """

    request: Request
    arrival: int
    sampling: SamplingState
    token_ids: list[int]
    spans: tuple[PlacedSpan, ...]
    phase: Phase = Phase.WAITING
    restored: set[int | None] = field(default_factory=set)
    reuse_given_up: bool = False
    residence: Residence | None = None
    queue: Rows = field(default_factory=lambda: NO_ROWS)
    plan: RepairPlan | None = None
    planned_spans: tuple[PlacedSpan, ...] = ()
    num_under_way: int = 0
    num_emitted: int = 0
    watch_is_over: bool = False
    num_drafted: int = 0
    num_to_draft: int = 0
    num_computed: int = 0
    finish_reason: FinishReason | None = None
    sources: TokenSources | None = None
    fallbacks: Counter[str] = field(default_factory=Counter)
    prompt_key: int | None = None
    row_layers: Counter[str] = field(default_factory=Counter)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    states: PooledStates | None = None
    blocks: BlockChain | None = None
    admitted_at: float | None = None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.token_ids)

    @property
    def num_to_forward(self) -> int:
        """Known tokens whose rows are wanted: all, but for the last of a forced output."""
        forced = self.request.forced_output
        num_output = len(self.token_ids) - self.num_prompt
        return len(self.token_ids) - (forced is not None and num_output == len(forced) and not self.num_drafted)

    @property
    def decodes(self) -> bool:
        """Whether it continues its output: no more than one row of it is left."""
        return self.num_emitted > 0 and len(self.queue) <= 1 and self.request.forced_output is None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are wanted, and not all are there."""
        return self.request.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt - 1

    @property
    def is_watched(self) -> bool:
        """Whether its watch is asked before the next token counts."""
        return self.held.watch is not None and not self.watch_is_over

    @property
    def speaking(self) -> range:
        """Positions of the rows whose tokens do not count yet."""
        return range(len(self.token_ids) - self.num_drafted - 1, len(self.token_ids))

    def drop_uncounted(self) -> list[int]:
        """Forget the tokens that are not given out, drafted or forced; returns them."""
        self.num_drafted = self.num_to_draft = 0
        count = self.num_prompt + self.num_emitted
        dropped = self.token_ids[count:]
        del self.token_ids[count:]
        return dropped

    @property
    def held(self) -> Residence:
        """What it holds in the pool; only for admitted sequences."""
        assert self.residence is not None, f"{self.request_id} is not admitted"
        return self.residence
