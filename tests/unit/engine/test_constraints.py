"""Constraints on the output: what they ban never comes, they outlive preemption, and a failing one ends one request."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

import pytest
import torch

from agentkv_engine.errors import ConstraintFailed, RequestRefused
from agentkv_engine.request import FinishReason, Request, SamplingParams
from engine_driver import engine_of, prompt_of, run


@dataclass(slots=True)
class InTurn:
    """Allows one set of tokens after the other; ends after `length` tokens."""

    sets: Iterator[set[int]]
    length: int = 1 << 30
    accepted: list[int] = field(default_factory=list)
    is_finished: bool = False

    def fill_bitmask(self, bitmask_BW: torch.Tensor, row: int) -> None:
        for token in next(self.sets):
            word = int(bitmask_BW[row, token // 32]) | 1 << token % 32
            bitmask_BW[row, token // 32] = word - (1 << 32 if word >= 1 << 31 else 0)

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)
        self.is_finished = len(self.accepted) >= self.length


@dataclass(slots=True)
class Breaks:
    """Fails in the method that is named."""

    where: str
    is_finished: bool = False

    def fill_bitmask(self, bitmask_BW: torch.Tensor, row: int) -> None:
        bitmask_BW[row] = -1
        if self.where == "fill":
            raise ValueError("a broken grammar")

    def accept(self, token_id: int) -> None:
        if self.where == "accept":
            raise ValueError("a broken grammar")


def in_turn(*sets: set[int], length: int = 1 << 30) -> InTurn:
    return InTurn(cycle(sets), length)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_only_allowed_tokens_come_also_beside_free_requests(decoder, temperature: float) -> None:
    params = SamplingParams(max_tokens=12, temperature=temperature, seed=1)
    engine = engine_of(decoder, 100)
    odd, even = {7, 31, 32, 63, 64, 95, 459}, {0, 100, 300}
    bound = Request(request_id="bound", token_ids=prompt_of(20, seed=1), sampling=params, constraint=in_turn(odd, even))
    free = Request(request_id="free", token_ids=prompt_of(20, seed=2), sampling=params)
    answers = run(engine, free, bound)
    tokens = answers["bound"].token_ids
    assert len(tokens) == 12
    assert all(token in odd for token in tokens[::2])
    assert all(token in even for token in tokens[1::2])
    assert answers["free"].token_ids == run(engine_of(decoder, 100), free)["free"].token_ids


def test_a_constraint_ends_its_request(decoder) -> None:
    constraint = in_turn({5, 6}, length=3)
    request = Request(request_id="a", token_ids=prompt_of(20, seed=1), constraint=constraint)
    answer = run(engine_of(decoder, 100), request)["a"]
    assert (len(answer.token_ids), answer.finish_reason) == (3, FinishReason.STOP)
    assert tuple(constraint.accepted) == answer.token_ids


def test_a_preempted_request_goes_on_with_its_constraint(decoder) -> None:
    def requests() -> list[Request]:
        return [
            Request(
                request_id=str(n),
                token_ids=prompt_of(40, seed=30 + n),
                sampling=SamplingParams(max_tokens=60, temperature=0.9, seed=n),
                constraint=in_turn({1, 2, 3, 40, 50}, {4, 5, 6, 70}),
            )
            for n in range(4)
        ]

    small, large = engine_of(decoder, 14, max_rows_per_step=32), engine_of(decoder, 100)
    squeezed, free = run(small, *requests()), run(large, *requests())
    assert small.num_preemptions > 0
    assert {name: answer.token_ids for name, answer in squeezed.items()} == {
        name: answer.token_ids for name, answer in free.items()
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Breaks("fill"), "a broken grammar"),
        (lambda: Breaks("accept"), "a broken grammar"),
        (lambda: in_turn(set()), "allows no token"),
    ],
)
def test_a_constraint_that_fails_ends_its_request_only(decoder, make: Callable[[], object], message: str) -> None:
    engine = engine_of(decoder, 100)
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=3)
    good = Request(request_id="good", token_ids=prompt_of(20, seed=2), sampling=params)
    bad = Request(request_id="bad", token_ids=prompt_of(20, seed=1), sampling=params, constraint=make())
    answers = run(engine, bad, good)
    assert isinstance(answers["bad"].error, ConstraintFailed)
    assert message in str(answers["bad"].error)
    assert answers["bad"].token_ids == ()
    assert answers["good"].token_ids == run(engine_of(decoder, 100), good)["good"].token_ids
    engine.release_finished()
    assert engine.memory().pinned == 0


def test_what_contradicts_a_constraint_is_refused(decoder) -> None:
    engine = engine_of(decoder, 100)
    request = Request(request_id="a", token_ids=(1, 2), constraint=in_turn({1}), forced_output=(1,))
    with pytest.raises(RequestRefused, match="forced output"):
        engine.add(request)
    patient = SamplingParams(min_tokens=2)
    with pytest.raises(RequestRefused, match="min_tokens"):
        engine.add(Request(request_id="a", token_ids=(1, 2), constraint=in_turn({1}), sampling=patient))
