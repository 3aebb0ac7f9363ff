"""What a step is to run: plain data, the same for every stage of a pipeline."""

from dataclasses import dataclass

from torch import Tensor

from agentkv_engine.sampling.result import Sampled, TokenLogprobs
from agentkv_engine.sampling.sampler import Sample
from agentkv_engine.scheduler.sequence import ProbeRecord, Residence, Rows, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSeq:
    """Rows of one sequence in this step.

    Attributes:
        sequence: whose.
        rows: positions and depths, in order of position.
        num_logits: logits are wanted of the last so many rows.
        samples: whether a token is to be sampled from the last of them.
        num_scored: the log-probability of the known token behind the row is wanted of the first so many of them.
        record: where its observed rows leave their queries, if there are any.
        residence: what the sequence holds now; by the time of the result it may hold something else, or nothing.
        num_computed: leading positions that have final keys once these rows have run.
        is_last: whether no rows of the sequence are left behind these.
    """

    sequence: Sequence
    rows: Rows
    num_logits: int
    samples: bool = False
    num_scored: int = 0
    record: ProbeRecord | None = None
    residence: Residence
    num_computed: int
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOutput:
    """One step: its rows, by sequence, oldest decode first."""

    scheduled: tuple[ScheduledSeq, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all sequences together."""
        return sum(len(item.rows) for item in self.scheduled)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeqResult:
    """What a step computed for one scheduled sequence.

    Attributes:
        logits: float32 [num_logits, vocabulary].
        sampled: the next token, where one was to be sampled.
        scored: `num_scored` log-probabilities.
    """

    logits: Tensor
    sampled: Sample | None = None
    scored: tuple[TokenLogprobs, ...] = ()

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Of the tokens that this step brings, where they are wanted."""
        if not isinstance(self.sampled, Sampled):
            return self.scored
        return () if self.sampled.logprobs is None else (self.sampled.logprobs,)
