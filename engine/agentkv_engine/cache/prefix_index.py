"""The exact prefix cache, and beside it the screened one: chains of hashes over blocks of token ids.

The root of a chain carries the model and the tenant. Two maps, since KV that is not exact must never reach an exact
request. Entries hold what the key table holds for their 16 positions, and keep every block behind them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import Keys
from agentkv_engine.config import BLOCK_SIZE

Digest = bytes


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
        self._screened: dict[Digest, PrefixEntry] = {}

    def __len__(self) -> int:
        return len(self._exact) + len(self._screened)

    def match(self, token_ids: Sequence[int], tenant: str, *, screened: bool) -> list[PrefixEntry]:
        """Entries of the longest known prefix. At each block the exact entry if there is one, else, where `screened`
        is set, the screened one."""
        found: list[PrefixEntry] = []
        for digest, block in self._chain(token_ids, tenant):
            entry = self._exact.get(digest) or (self._screened.get(digest) if screened else None)
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
        """
        new: list[tuple[int, Digest, bytes]] = [
            (number, digest, block)
            for number, (digest, block) in enumerate(self._chain(token_ids, tenant))
            if number >= first_block
        ]
        for number, digest, block in reversed(new):  # the leaf first: it is the older in the policy's eyes
            start, end = number * BLOCK_SIZE, (number + 1) * BLOCK_SIZE
            exact = is_exact(end)
            entries = self._exact if exact else self._screened
            if (known := self._exact.get(digest) or entries.get(digest)) is not None:
                self._pool.touch(known.keeper_id)
                continue
            self._add(entries, digest, block, keys_of(start, end), exact, 0 if exact else hops, depth_of(start, end))

    def _add(
        self,
        entries: dict[Digest, PrefixEntry],
        digest: Digest,
        block: bytes,
        keys: Keys,
        exact: bool,
        hops: int,
        depth_spent: int,
    ) -> None:
        keeper_id = self._pool.keep(
            np.unique(keys.slots_KN // BLOCK_SIZE).tolist(), lambda: entries.__delitem__(digest)
        )
        self._pool.seal(keys.slots_KN)
        entries[digest] = PrefixEntry(
            token_ids=block, keys=keys, exact=exact, hops=hops, depth_spent=depth_spent, keeper_id=keeper_id
        )

    def _chain(self, token_ids: Sequence[int], tenant: str) -> Iterator[tuple[Digest, bytes]]:
        digest = blake2b(f"{self._model}\0{tenant}".encode(), digest_size=16).digest()
        ids = np.asarray(token_ids, dtype=np.int64)
        for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = ids[start : start + BLOCK_SIZE].tobytes()
            digest = blake2b(digest + block, digest_size=16).digest()
            yield digest, block
