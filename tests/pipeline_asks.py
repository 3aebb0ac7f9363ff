"""What stages are asked, and one process too, to compare them."""

import torch

from agentkv.screening.selectors.propagated_attention import PropagatedAttention
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.value_deviation import ValueDeviation
from agentkv_engine.request import Request, SamplingParams
from agentkv_engine.reuse import Probe
from engine_driver import Answer, FixedPlan, prompt_of

AUTHOR = prompt_of(60, seed=40)
READER = prompt_of(10, seed=41) + AUTHOR[:48] + prompt_of(20, seed=42)


def assert_alike(staged: dict[str, Answer], here: dict[str, Answer], *, within: float = 1e-4) -> None:
    assert staged.keys() == here.keys()
    for name, answer in here.items():
        assert staged[name].error is None
        assert staged[name].token_ids == answer.token_ids, name
        assert staged[name].finish_reason == answer.finish_reason
        if answer.parts:
            assert (staged[name].logits - answer.logits.cpu()).abs().max() < within


def ask(name: str, length: int, seed: int, **options) -> Request:
    sampling = options.pop("sampling", SamplingParams(max_tokens=12))
    return Request(request_id=name, token_ids=prompt_of(length, seed=seed), sampling=sampling, **options)


class EvenThenOdd:
    """A constraint: even and odd tokens take turns; ends after six."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    @property
    def is_finished(self) -> bool:
        return len(self.accepted) == 6

    def fill_bitmask(self, bitmask_BW: torch.Tensor, row: int) -> None:
        bitmask_BW[row] = 0x55555555 if len(self.accepted) % 2 == 0 else -0x55555556

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def requests() -> list[Request]:
    seeded = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.9, seed=7)
    penalised = SamplingParams(max_tokens=12, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={5: 3.0})
    return [
        ask("greedy", 33, 1, return_logits=True),
        ask("seeded", 50, 2, sampling=seeded, num_logprobs=2),
        ask("penalised", 21, 3, sampling=penalised),
        ask("forced", 18, 4, forced_output=prompt_of(40, seed=5), return_logits=True),
        ask("scored", 90, 6, prompt_logprobs=1),
        ask("constrained", 20, 7, constraint=EvenThenOdd()),
    ]


SELECTORS = {
    "planned": lambda: FixedPlan({10: 1, 12: 2, 20: 3, **dict.fromkeys(range(30, 40), 2)}),
    "probed": lambda: FixedPlan(dict.fromkeys(range(10, 30), 3), Probe(positions=tuple(range(66, 78)), depth=3)),
    "reading_change": lambda: ReadingChange(ratio=0.3),
    "propagated": lambda: PropagatedAttention(ratio=0.25, growth=0.1, rounds=3),
    "value_deviation": lambda: ValueDeviation(ratio=0.3, layer=1),
}
