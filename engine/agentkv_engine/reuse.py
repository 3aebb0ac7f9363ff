"""The seam between the middleware and the engine: KV that lies in the pool, and what to recompute of it.

The engine knows nothing of messages. It is told that a half-open *span* of a prompt may be read from a *resident*, and
asks a *selector* which of the reused rows to recompute and through how many layers; `Selector` has the two questions. A
*depth* is the number of layers through which a row is computed: 0 (only reused) to num_layers (repaired in full, as in
a full prefill).

A plan may leave a *watch* behind: it sees what the reply's first rows read, and has rows repaired for them.

Shapes: L layers, R observed rows, P prompt positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A handle to kept KV of consecutive tokens in the pool (see `Engine.keep`).

    Attributes:
        handle: what `PlacedSpan.handle`, `Engine.release` and `Engine.export` take; never another's, also after an
            eviction.
        token_ids: the tokens whose KV it is.
        exact: whether every row up to its end was computed at full depth over exact rows.
        hops: 0 when exact; KV that was computed over reused KV of n hops has n + 1.
    """

    handle: int
    token_ids: tuple[int, ...]
    exact: bool
    hops: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens it holds."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSpan:
    """A span [start, end) of a prompt whose KV is read from a resident, beginning at its token `resident_start`.

    Attributes:
        start, end: prompt positions, half-open.
        handle: the resident; None for a hit of the prefix index that is not exact (only the engine makes those).
        resident_start: index of the resident's token that stands at prompt position `start`.
        unseen: half-open ranges of prompt positions before `start` which the author of the resident had *not* seen.
        num_gone: number of tokens which the author had seen and which do not stand before the span in this prompt.
        unread: the parts of `unseen` that hold other kept texts, as against instructions and wrappers, which every
            reader has of its own; whatever of them the prefix index covers.
        hops: the resident's hops.
        depth_spent: depth already spent on these rows *in this very context* (a screened prefix hit); else 0.
    """

    start: int
    end: int
    handle: int | None
    resident_start: int = 0
    unseen: tuple[tuple[int, int], ...] = ()
    num_gone: int = 0
    unread: tuple[tuple[int, int], ...] = ()
    hops: int = 0
    depth_spent: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of positions it covers."""
        return self.end - self.start

    @property
    def num_unseen(self) -> int:
        """Number of earlier tokens of this prompt which the author had not seen."""
        return sum(end - start for start, end in self.unseen)

    @property
    def context_changed(self) -> bool:
        """Whether the author had seen anything else than what stands before the span now."""
        return bool(self.unseen) or self.num_gone > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseView:
    """What a selector sees of a request.

    Attributes:
        num_tokens: prompt length; positions 0..num_tokens-1.
        num_layers: layers of the model, the largest depth.
        num_prefix: leading positions that an exact prefix hit covers; they need nothing.
        spans: the reused spans, sorted, disjoint, all at or behind `num_prefix`.
    """

    num_tokens: int
    num_layers: int
    num_prefix: int
    spans: tuple[PlacedSpan, ...]

    @property
    def num_reused(self) -> int:
        """Number of reused positions."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def first_reused(self) -> int:
        """The first reused position; fresh rows before it are final whatever the plan. Without spans, `num_prefix`."""
        return self.spans[0].start if self.spans else self.num_prefix

    @property
    def changed_positions(self) -> list[int]:
        """Reused positions of spans whose context has changed: the rows a selector chooses from."""
        return [p for span in self.spans if span.context_changed for p in range(span.start, span.end)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Rows to run over stale keys before the plan is made, and through how many layers; their attention is observed.

    A probe of no rows only looks: at the traces of reused rows.

    Attributes:
        positions: sorted prompt positions.
        depth: layers through which they run, 1..num_layers.
    """

    positions: tuple[int, ...]
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """Reused rows that are asked again what they read.

    Attributes:
        positions: prompt positions of a reused span, ascending, one or more; a range or a tuple.
        left_out: half-open ranges of positions: their part in what is read is wanted.
    """

    positions: Sequence[int]
    left_out: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What R rows read in one layer. Fresh text between spans has no keys yet and is not read.

    Changes are lengths of differences of the attention layer's output, as shares of the row's hidden state behind the
    layer; they come from sketches (`cache.row_traces`), good to about 9%.

    Attributes:
        since_then_R: change since the row was computed: by keys that stand before it now, and by those that stood
            before it then, float32 [R].
        by_left_out_R: change by the keys that were named to be left out, float32 [R].
    """

    since_then_R: torch.Tensor
    by_left_out_R: torch.Tensor


class Observation(Protocol):
    """What can be looked at while a plan is made. Only what is asked for is computed, and it is counted as work."""

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes that have run for this plan, in order."""
        ...

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """Layers in which reused rows can be looked at without running them: they left traces beside their keys."""
        ...

    def attention(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """Head-mean attention of named rows over the keys that lie before them now, in one layer.

        Args:
            layer: below the depth of the probes that ran the rows.
            positions: rows of the probes (their own queries are used); reused rows where the layer is traced.

        Returns:
            float32 [len(positions), num_tokens]; 0 where a row sees no key.
        """
        ...

    def most_read(self, layer: int, positions: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of that attention the part that goes to the keys that are read most.

        Args:
            layer, positions: as of `attention`; rows behind the prompt, too.
            count: keys a row.

        Returns:
            Shares float32 and their keys' positions int64, [len(positions), count] each; shares of 0 where a row sees
            fewer keys.
        """
        ...

    def reading(self, layer: int, rereads: Sequence[Reread], chosen: torch.Tensor | None = None) -> Reading:
        """What reused rows read now in a traced layer, asked by the queries they left.

        Args:
            layer: one of `traced_layers`.
            rereads: rows in groups, with the keys whose part is wanted; R counts all their rows, in this order.
            chosen: indices of rows, ascending and counted through all groups: only these are wanted, and R counts them.
                A choice that was made on the device stays there. None: all.
        """
        ...

    def value_deviation(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """Squared distance of the V that a probe wrote for a reused row from the V that is kept, over all kv heads.

        Args:
            layer: at most the depth of the probe that ran the rows.
            positions: reused rows that a probe has run.

        Returns:
            float32 [len(positions)].
        """
        ...

    def value_turn(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """1 - the cosine of those two, all kv heads one vector; arguments and shape as of `value_deviation`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Tokens to be written behind the known ones, each the likeliest, only to see what they read.

    Attributes:
        num_tokens: at most so many, 1 or more; a stop token is the last.
    """

    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """Reused rows to recompute, all at full depth, together with the rows whose tokens do not count yet.

    Attributes:
        repairs: positions that nobody has repaired yet; ascending.
        left: see `RepairPlan.left`.
    """

    repairs: tuple[int, ...]
    left: float | None = None


class Watch(Protocol):
    """Goes on where a plan ends: sees what the rows behind the first reused one read, and has more rows repaired before
    the next token counts."""

    def see(self, observation: Observation) -> None:
        """The rows of the observation's probes have run, through all layers."""
        ...

    def ask(self, observation: Observation, speaking: range) -> Draft | Amendment | None:
        """What has to be done before the next token counts; None when nothing has, and the watch is over.

        Args:
            observation: of what has run last.
            speaking: positions of the rows whose tokens do not count yet: the last one that was given out, or the
                prompt's last, and all that are drafted behind it. Behind a draft it is asked again; behind an amendment
                it is not, until the next token has run.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """Which reused rows to recompute, each with its depth. Rows not named keep depth 0 (only reused).

    The engine rounds depths up to its levels, and adds the prompt's last row at full depth: it is never only reused.

    Attributes:
        positions: sorted prompt positions inside the view's spans.
        depths: one for each position, 1..num_layers.
        left: importance of the stale rows that it does not repair, in the rule's own units: the less, the smaller the
            error. None where the rule does not know; 0 where nothing stale is read.
        watch: begins a watch over the rows that are left, given the view and the positions that are repaired: once, and
            again after a preemption.
    """

    positions: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    left: float | None = field(default=None, compare=False)
    watch: Callable[[ReuseView, Sequence[int]], Watch] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.depths):
            raise ValueError(
                f"{len(self.positions)} positions but {len(self.depths)} depths: give one depth a position"
            )

    @classmethod
    def at_full_depth(cls, positions: Sequence[int], num_layers: int, *, left: float | None = None) -> "RepairPlan":
        """A static set: the given positions, recomputed through all layers."""
        chosen = tuple(sorted(positions))
        return cls(positions=chosen, depths=(num_layers,) * len(chosen), left=left)

    def with_repairs(self, positions: Sequence[int], num_layers: int, *, left: float | None) -> "RepairPlan":
        """This plan, and these positions recomputed through all layers."""
        depths = dict(zip(self.positions, self.depths, strict=True)) | dict.fromkeys(positions, num_layers)
        return replace(
            self, positions=tuple(sorted(depths)), depths=tuple(depths[p] for p in sorted(depths)), left=left
        )


class Selector(Protocol):
    """Says what to look at and what to repair. A frozen dataclass, one file each, in `agentkv.screening.selectors`."""

    @property
    def name(self) -> str:
        """The rule with its parameters, as shown in usage and results, e.g. `query_attention(0.2)`."""
        ...

    def probe(self, view: ReuseView) -> Probe | None:
        """Rows to observe before planning, or None for a rule that needs no look."""
        ...

    def plan(self, view: ReuseView, observation: Observation | None) -> RepairPlan | Probe:
        """Depth of each reused row, from the view and what the probes saw; or one more probe, of rows that none has run
        yet, after which it is asked again."""
        ...
