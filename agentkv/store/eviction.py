"""In which order the engine drops kept KV when it wants blocks."""

from collections.abc import Iterable

from agentkv_engine.engine import EvictionPolicy


class SparePinned:
    """An eviction policy that never offers what users have pinned, and orders the rest as another policy does.

    A pinned keeper leaves the other policy and comes back, as new, when it is unpinned; so no pin is ever stepped over,
    and every operation costs what it costs there.

    Args:
        policy: orders what is not pinned, e.g. `LeastRecentlyUsed()`.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._pinned: set[int] = set()

    def pin(self, keeper_id: int) -> None:
        """Stop offering a keeper. It must be there and not pinned."""
        self._policy.remove(keeper_id)
        self._pinned.add(keeper_id)

    def unpin(self, keeper_id: int) -> None:
        """Offer a keeper again. It must be pinned."""
        self._pinned.remove(keeper_id)
        self._policy.add(keeper_id)

    def add(self, keeper_id: int) -> None:
        """See `EvictionPolicy.add`."""
        self._policy.add(keeper_id)

    def touch(self, keeper_id: int) -> None:
        """See `EvictionPolicy.touch`."""
        if keeper_id not in self._pinned:
            self._policy.touch(keeper_id)

    def remove(self, keeper_id: int) -> None:
        """See `EvictionPolicy.remove`."""
        if keeper_id in self._pinned:
            self._pinned.remove(keeper_id)
        else:
            self._policy.remove(keeper_id)

    def candidates(self) -> Iterable[int]:
        """See `EvictionPolicy.candidates`."""
        return self._policy.candidates()
