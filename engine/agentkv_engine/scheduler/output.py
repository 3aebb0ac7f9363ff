"""What a step is to run: plain data, the same for every stage of a pipeline."""

from dataclasses import dataclass

from agentkv_engine.scheduler.sequence import Rows, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSeq:
    """Rows of one sequence in this step.

    Attributes:
        sequence: whose.
        rows: positions and depths, in order of position.
        num_logits: logits are wanted of the last so many rows.
    """

    sequence: Sequence
    rows: Rows
    num_logits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOutput:
    """One step: its rows, by sequence, oldest decode first."""

    scheduled: tuple[ScheduledSeq, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all sequences together."""
        return sum(len(item.rows) for item in self.scheduled)
