"""Runs the turns of recorded conversations under several ways of reuse, turn by turn side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from agentkv.api import ChatRequest, ChatService, Reuse
from agentkv_evals.comparison.arms import Arm, ask, rotated
from agentkv_evals.comparison.fidelity import compare
from agentkv_evals.comparison.tally import Measured
from agentkv_evals.replay.trace import Trace
from agentkv_evals.replay.turns import Turn, turns_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One conversation replayed.

    Attributes:
        trace_id: which.
        measured: turns by mode.
        skipped: turns whose prompt and reply are longer than the context that was asked for.
    """

    trace_id: str
    measured: Mapping[Reuse, Sequence[Measured]]
    skipped: int


class Replay:
    """Replays conversations on one service.

    Full prefill always runs: it is what the other modes are compared with. Each mode has a tenant of its own in each
    conversation, so no figure depends on what was replayed before.

    Args:
        service: answers; with `forced_reply` and `return_logits`, so it runs in this process.
        modes: the modes to compare with full prefill.
        selector: rule of the screened mode; None takes the service's.
        num_turns: most turns of a conversation; None plays all.
        fits: whether a turn's prompt and reply are short enough to be played.
    """

    def __init__(
        self,
        service: ChatService,
        *,
        modes: Sequence[Reuse],
        fits: Callable[[Turn], bool],
        selector: str | None = None,
        num_turns: int | None = None,
    ) -> None:
        self.modes = tuple(mode for mode in Reuse if mode is Reuse.OFF or mode in modes)
        self._service = service
        self._fits = fits
        self._selector = selector
        self._num_turns = num_turns
        self._played = 0

    def turns(self, trace: Trace) -> list[Turn]:
        """The turns that `play` looks at."""
        return list(islice(turns_of(trace), self._num_turns))

    def play(self, trace: Trace, on_turn: Callable[[], None] = lambda: None) -> Played:
        """Replay a conversation; `on_turn` is called after each turn, skipped ones included."""
        arms = [Arm(reuse=mode, selector=self._selector, tenant=f"{mode}/{trace.id}") for mode in self.modes]
        measured: dict[Reuse, list[Measured]] = {mode: [] for mode in self.modes}
        skipped = 0
        for turn in self.turns(trace):
            if self._fits(turn):
                for mode, result in self._play_turn(turn, arms).items():
                    measured[mode].append(result)
            else:
                skipped += 1
            on_turn()
        return Played(trace_id=trace.id, measured=measured, skipped=skipped)

    def _play_turn(self, turn: Turn, arms: Sequence[Arm]) -> dict[Reuse, Measured]:
        request = ChatRequest(messages=turn.prompt, forced_reply=turn.reply, return_logits=True, agent=turn.agent)
        order = rotated(arms, self._played)
        self._played += 1
        answers = {arm.reuse: ask(self._service, arm, request) for arm in order}
        full = answers[Reuse.OFF]
        return {
            mode: Measured(
                agent=turn.agent,
                turn=turn.index,
                usage=answer.usage,
                ttft_ratio=full.ttft / answer.ttft,
                fidelity=compare(full.logits, answer.logits),
            )
            for mode, answer in answers.items()
        }
