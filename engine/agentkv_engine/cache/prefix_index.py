"""The exact prefix cache, and beside it the screened one: chains of hashes over blocks of token ids.

The root of a chain carries the model and the tenant. Two maps, since KV that is not exact must never reach an exact
request. Entries hold what the key table holds for their 16 positions, and keep every block behind them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import Keys
from agentkv_engine.config import BLOCK_SIZE

Digest = bytes
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixEntry:
    """Keys of one block of 16 positions behind a known prefix.

    Attributes:
        token_ids: the block's ids, as bytes, compared on a hit.
        keys: as they stood in the table of the sequence that computed them; positions are the same for every reader.
        exact: every row up to the block's end was computed at full depth, or read from exact blocks at offset 0.
        hops: 0 when exact.
        depth_spent: mean depth of its rows, rounded down.
        keeper_id: its hold in the block pool.
    """

    token_ids: bytes
    keys: Keys
    exact: bool
    hops: int
    depth_spent: int
    keeper_id: int


class PrefixIndex:
    """Finds the longest known prefix of a prompt, block by block."""

    def __init__(self, pool: BlockPool, model: str) -> None:
        self._pool = pool
        self._model = model
        self._exact: dict[Digest, PrefixEntry] = {}
        self._screened: dict[tuple[Digest, str], PrefixEntry] = {}

    def __len__(self) -> int:
        return len(self._exact) + len(self._screened)

    def match(self, token_ids: Sequence[int], tenant: str, *, rule: str | None) -> list[PrefixEntry]:
        """Entries of the longest known prefix. At each block the exact entry if there is one, else the screened one
        that the same rule has repaired; None takes exact ones only."""
        found: list[PrefixEntry] = []
        for digest, block in self._chain(token_ids, tenant):
            entry = self._exact.get(digest) or (self._screened.get((digest, rule)) if rule is not None else None)
            if entry is None or entry.token_ids != block:
                break
            found.append(entry)
        for entry in reversed(found):  # leaves are dropped before what they hang on
            self._pool.touch(entry.keeper_id)
        return found

    def insert(
        self,
        token_ids: Sequence[int],
        tenant: str,
        *,
        first_block: int,
        keys_of: Callable[[int, int], Keys],
        is_exact: Callable[[int], bool],
        depth_of: Callable[[int, int], int],
        hops: int,
        rule: str,
    ) -> None:
        """Add the full blocks of a computed sequence, from `first_block` on.

        Args:
            token_ids: all ids that have KV.
            tenant: whose.
            first_block: blocks before it were added already.
            keys_of: keys of positions [start, end).
            is_exact: whether all rows before a position are exact.
            depth_of: mean depth spent on positions [start, end).
            hops: of the rows that are not exact.
            rule: name of the selector by which they were repaired.
        """
        chain = list(enumerate(self._chain(token_ids, tenant)))
        for number, (digest, block) in reversed(chain):  # the leaf first: it is dropped before what it hangs on
            start, end = number * BLOCK_SIZE, (number + 1) * BLOCK_SIZE
            exact = is_exact(end)
            known = self._exact.get(digest) or (None if exact else self._screened.get((digest, rule)))
            if number < first_block:
                if known is not None:
                    self._pool.touch(known.keeper_id)
                continue
            depth = depth_of(start, end)
            if known is not None and (known.exact or known.depth_spent >= depth):
                self._pool.touch(known.keeper_id)
            else:
                if known is not None:  # repaired deeper this time
                    self._pool.drop(known.keeper_id)
                made = partial(PrefixEntry, token_ids=block, exact=exact, hops=0 if exact else hops, depth_spent=depth)
                if exact:
                    self._add(self._exact, digest, keys_of(start, end), made)
                else:
                    self._add(self._screened, (digest, rule), keys_of(start, end), made)

    def drop_all(self) -> None:
        """The KV is gone: nothing is known any more."""
        for entry in [*self._exact.values(), *self._screened.values()]:
            self._pool.drop(entry.keeper_id)

    def _add(self, entries: dict[Key, PrefixEntry], key: Key, keys: Keys, entry: Callable[..., PrefixEntry]) -> None:
        blocks = set((keys.slots_KN // BLOCK_SIZE).ravel().tolist())  # few: a set is faster than numpy
        keeper_id = self._pool.keep(blocks, lambda: entries.__delitem__(key))
        self._pool.seal(keys.slots_KN)
        entries[key] = entry(keys=keys, keeper_id=keeper_id)

    def _chain(self, token_ids: Sequence[int], tenant: str) -> Iterator[tuple[Digest, bytes]]:
        digest = blake2b(f"{self._model}\0{tenant}".encode(), digest_size=16).digest()
        ids = np.asarray(token_ids, dtype=np.int64)
        for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = ids[start : start + BLOCK_SIZE].tobytes()
            digest = blake2b(digest + block, digest_size=16).digest()
            yield digest, block
