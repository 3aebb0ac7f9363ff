"""What has become of an item under each arm so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentkv.errors import ConfigError
from agentkv_engine.request import TokenSources
from agentkv_evals.accuracy.arms import Arm
from agentkv_evals.accuracy.cases import Case, Cell
from agentkv_evals.accuracy.drive import Reply
from agentkv_evals.comparison.fidelity import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An item, and the arms that have not answered it yet."""

    cell: Cell
    seed: int
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One arm at one step, full prefill's reply forced upon it.

    Attributes:
        best: the best token at each position of the reply; equal to it exactly where greedy decoding gives it.
        fidelity: to full prefill.
        sources, seconds: see `Reply`.
    """

    best: tuple[int, ...]
    fidelity: Fidelity
    sources: TokenSources
    seconds: float


@dataclass(slots=True, kw_only=True)
class Played:
    """One item so far: its prompts, full prefill's replies, and what each arm made of them.

    Attributes:
        case: the prompt that is asked next; None when the item has ended.
        cases, replies, full: by step.
        told, right, own: by step and arm; `right` behind the right reply, `own` what it decoded by itself.
    """

    ask: Ask
    case: Case | None
    cases: list[Case] = field(default_factory=list)
    replies: list[tuple[int, ...]] = field(default_factory=list)
    full: list[Told] = field(default_factory=list)
    told: list[dict[str, Told]] = field(default_factory=list)
    right: list[dict[str, Told]] = field(default_factory=list)
    own: list[dict[str, tuple[int, ...]]] = field(default_factory=list)

    def first_difference(self, arm: str) -> int | None:
        """The first step at which greedy decoding under an arm gives another reply than full prefill's."""
        pairs = enumerate(zip(self.told, self.replies, strict=True))
        return next((step for step, (told, reply) in pairs if told[arm].best != reply), None)


@dataclass(slots=True, kw_only=True)
class Way:
    """An arm that goes on by itself: what was said on its way so far, full prefill's replies before it leaves them."""

    play: Played
    arm: Arm
    replies: list[tuple[int, ...]]


def told_of(reply: Reply, fidelity: Fidelity) -> Told:
    """What is to be remembered of a reply; not its logits."""
    check(reply)
    assert reply.sources is not None, "a reply that has ended has said where its prompt came from"
    return Told(
        best=tuple(token for chunk in reply.chunks for token in chunk.argmax(dim=-1).tolist()),
        fidelity=fidelity,
        sources=reply.sources,
        seconds=reply.seconds,
    )


def check(reply: Reply) -> None:
    """Raise ConfigError where the reply missed KV that was to be read."""
    assert reply.sources is not None
    lost = {reason for reason, _ in reply.sources.fallbacks} & {"segment_gone", "no_room"}
    if lost:
        raise ConfigError(
            f"kept KV was evicted ({', '.join(sorted(lost))}): raise --kv-memory, or lower --batch, which sets how "
            "many items are kept at once"
        )
