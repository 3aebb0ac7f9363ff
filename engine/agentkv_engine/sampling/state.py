"""What sampling remembers of one sequence."""

import random
from collections import Counter

import numpy as np

from agentkv_engine.sampling.constraint import TokenConstraint
from agentkv_engine.sampling.params import SamplingParams


class SamplingState:
    """Moves on with every token that is chosen; untouched by chunks and preemptions.

    Args:
        params: the request's parameters.
        prompt: the prompt's ids, which the repetition penalty looks at.
        num_logprobs: alternatives to give beside each token's log-probability; None gives neither.
        constraint: what the output must look like.

    Attributes:
        is_plain: greedy, with nothing that changes logits and nothing to tell: an argmax.
        output_counts: how often the output has each token; kept where a penalty needs it.
        is_finished: whether its constraint allows nothing more.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: tuple[int, ...],
        *,
        num_logprobs: int | None = None,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.params = params
        self.num_logprobs = num_logprobs
        self.constraint = constraint
        self.num_output = 0
        self.is_finished = False
        self.output_counts: Counter[int] = Counter()
        self.prompt_ids = np.unique(np.asarray(prompt)) if params.repetition_penalty != 1 else np.empty(0, np.int64)
        self.is_plain = (
            params.is_greedy
            and num_logprobs is None
            and constraint is None
            and not (params.has_penalties or params.logit_bias or params.min_tokens)
        )
        self._random = random.Random(params.seed)

    @property
    def must_go_on(self) -> bool:
        """Whether it is too early for a stop token."""
        return self.num_output < self.params.min_tokens

    def draw(self) -> float:
        """The number in [0, 1) that decides the next token."""
        return self._random.random()

    def take(self, token_id: int) -> None:
        """This token was chosen; raises what its constraint raises."""
        self.num_output += 1
        if self.params.has_penalties:
            self.output_counts[token_id] += 1
        if self.constraint is not None:
            self.constraint.accept(token_id)
            self.is_finished = self.constraint.is_finished
