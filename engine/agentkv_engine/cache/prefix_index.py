"""The exact prefix cache, and beside it the screened one: chains of hashes over blocks of token ids.

The root of a chain carries the model and the tenant. Two maps, since KV that is not exact must never reach an exact
request. Entries hold what the key table holds for their 16 positions, and keep every block behind them.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from agentkv_engine.cache.block_pool import BlockPool
from agentkv_engine.cache.key_table import Keys
from agentkv_engine.config import BLOCK_SIZE

Digest = bytes
Key = TypeVar("Key")
_BLOCK_BYTES = BLOCK_SIZE * array("q").itemsize


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


class BlockChain:
    """The blocks of one sequence's token ids and their digests, each made when it is first asked for and then kept: ids
    are only ever appended, and a waiting chat asks again at every step."""

    def __init__(self, root: Digest) -> None:
        self._root = root
        self._links: list[tuple[Digest, bytes]] = []

    def of(self, token_ids: Sequence[int], num_tokens: int | None = None) -> Iterator[tuple[Digest, bytes]]:
        """Digest and ids of each full block among the first `num_tokens` ids; None takes all."""
        count = (len(token_ids) if num_tokens is None else num_tokens) // BLOCK_SIZE
        yield from self._links[:count]
        first = len(self._links)
        ids = memoryview(array("q", token_ids[first * BLOCK_SIZE : count * BLOCK_SIZE]).tobytes())
        for number in range(first, count):
            if number == len(self._links):
                block = bytes(ids[(number - first) * _BLOCK_BYTES : (number - first + 1) * _BLOCK_BYTES])
                before = self._links[-1][0] if self._links else self._root
                self._links.append((blake2b(before + block, digest_size=16).digest(), block))
            yield self._links[number]


class PrefixIndex:
    """Finds the longest known prefix of a prompt, block by block."""

    def __init__(self, pool: BlockPool, model: str) -> None:
        self._pool = pool
        self._model = model
        self._exact: dict[Digest, PrefixEntry] = {}
        self._screened: dict[tuple[Digest, str], PrefixEntry] = {}

    def __len__(self) -> int:
        return len(self._exact) + len(self._screened)

    def chain(self, tenant: str) -> BlockChain:
        """The chain of a new sequence of this tenant."""
        return BlockChain(blake2b(f"{self._model}\0{tenant}".encode(), digest_size=16).digest())

    def match(self, blocks: Iterable[tuple[Digest, bytes]], *, rule: str | None) -> list[PrefixEntry]:
        """Entries of the longest known prefix. At each block the exact entry if there is one, else the screened one
        that the same rule has repaired; None takes exact ones only."""
        found: list[PrefixEntry] = []
        for digest, block in blocks:
            entry = self._exact.get(digest) or (self._screened.get((digest, rule)) if rule is not None else None)
            if entry is None or entry.token_ids != block:
                break
            found.append(entry)
        for entry in reversed(found):  # leaves are dropped before what they hang on
            self._pool.touch(entry.keeper_id)
        return found

    def insert(
        self,
        blocks: Iterable[tuple[Digest, bytes]],
        *,
        first_block: int,
        keys: Keys,
        exact_until: int,
        depths: Sequence[int],
        hops: int,
        rule: str,
    ) -> None:
        """Add the full blocks of a computed sequence, from `first_block` on.

        Args:
            blocks: all that have KV, the sequence's first one at their head.
            first_block: blocks before it were added already.
            keys: of the positions of the blocks to add.
            exact_until: all rows before this position are exact.
            depths: mean depth spent on the rows of each block to add.
            hops: of the rows that are not exact.
            rule: name of the selector by which they were repaired.
        """
        chain = list(blocks)
        behind = _blocks_behind(keys)
        for number in reversed(range(len(chain))):  # the leaf first: it is dropped before what it hangs on
            digest, block = chain[number]
            exact, added = (number + 1) * BLOCK_SIZE <= exact_until, number - first_block
            known = self._exact.get(digest) or (None if exact else self._screened.get((digest, rule)))
            if known is not None and (added < 0 or known.exact or known.depth_spent >= depths[added]):
                self._pool.touch(known.keeper_id)
                continue
            if added < 0:
                continue
            if known is not None:  # repaired deeper this time
                self._pool.drop(known.keeper_id)
            own = keys[added * BLOCK_SIZE : (added + 1) * BLOCK_SIZE]
            self._pool.seal(own.slots_KN)
            made = partial(
                PrefixEntry,
                token_ids=block,
                keys=own,
                exact=exact,
                hops=0 if exact else hops,
                depth_spent=depths[added],
            )
            if exact:
                self._add(self._exact, digest, behind[added], made)
            else:
                self._add(self._screened, (digest, rule), behind[added], made)

    def drop_all(self) -> None:
        """The KV is gone: nothing is known any more."""
        for entry in [*self._exact.values(), *self._screened.values()]:
            self._pool.drop(entry.keeper_id)

    def _add(
        self, entries: dict[Key, PrefixEntry], key: Key, blocks: set[int], entry: Callable[..., PrefixEntry]
    ) -> None:
        keeper_id = self._pool.keep(blocks, lambda: entries.__delitem__(key))
        entries[key] = entry(keeper_id=keeper_id)


def _blocks_behind(keys: Keys) -> list[set[int]]:
    """The pool's blocks in which the keys of each 16 positions lie."""
    num_levels, num_keys = keys.slots_KN.shape
    blocks_KMB = (keys.slots_KN // BLOCK_SIZE).reshape(num_levels, num_keys // BLOCK_SIZE, BLOCK_SIZE)
    return [{block for level in levels for block in level} for levels in blocks_KMB.transpose(1, 0, 2).tolist()]
