"""The step that comes next if every sequence of a step of decodes goes on and nobody else comes: it can be got ready
while that step runs, since only the tokens are unknown."""

from collections.abc import Callable
from collections.abc import Sequence as Ordered

from agentkv_engine.scheduler.output import ScheduledSeq, SchedulerOutput
from agentkv_engine.scheduler.sequence import Rows, Sequence


def expected_decodes(
    schedule: SchedulerOutput, *, depth: int, assign_slot: Callable[[Sequence, int], bool]
) -> SchedulerOutput | None:
    """The step behind one that is under way; None where that one does more than decode, or a slot lacks.

    Args:
        schedule: the step under way.
        depth: of the rows.
        assign_slot: gives a position of a sequence the slot it writes; False where there is none.
    """
    items = []
    for item in schedule.scheduled:
        seq, position = item.sequence, item.num_computed
        decodes = item.samples and item.is_last and len(item.rows) == 1 and seq.residence is item.residence
        if not (decodes and assign_slot(seq, position)):
            return None
        rows = Rows.one(position, depth)
        items.append(
            ScheduledSeq(
                sequence=seq,
                rows=rows,
                num_logits=1,
                samples=True,
                residence=item.residence,
                num_computed=position + 1,
                is_last=True,
            )
        )
    return SchedulerOutput(scheduled=tuple(items))


def all_go_on(expected: SchedulerOutput, running: Ordered[Sequence]) -> bool:
    """Whether the running sequences are those of the expected step, and want just its rows."""
    return len(running) == len(expected.scheduled) and all(
        item.sequence.residence is item.residence
        and len(item.sequence.queue) == 1
        and item.sequence.queue.positions[0] == item.rows.positions[0]
        for item in expected.scheduled
    )
