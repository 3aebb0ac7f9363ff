"""What is asked of the engine and what it answers: plain data, shared with the middleware."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from agentkv_engine.errors import EngineError
from agentkv_engine.reuse import PlacedSpan, Selector
from agentkv_engine.sampling.constraint import TokenConstraint
from agentkv_engine.sampling.params import MOST_LOGPROBS, SamplingParams, check_sampling
from agentkv_engine.sampling.result import TokenLogprobs

__all__ = [
    "MOST_LOGPROBS",
    "FinishReason",
    "Request",
    "ReuseMode",
    "SamplingParams",
    "StepOutput",
    "TokenConstraint",
    "TokenLogprobs",
    "TokenSources",
    "check_sampling",
]


class ReuseMode(StrEnum):
    """How much kept KV a request may read.

    OFF reads none (full prefill). EXACT reads the prefix index's exact entries: the answers are those of OFF. SCREENED
    also reads screened entries and placed spans, repaired as the request's selector says.
    """

    OFF = "off"
    EXACT = "exact"
    SCREENED = "screened"


class Output(StrEnum):
    """What a request is to bring: tokens that continue its prompt, or the mean of its prompt's last hidden states."""

    TOKENS = "tokens"
    POOLED_STATES = "pooled_states"


class FinishReason(StrEnum):
    """Why a request ended. Values of OpenAI's `finish_reason`, and `abort`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue.

    Attributes:
        request_id: unique among the requests in the engine.
        token_ids: the prompt.
        sampling: see `SamplingParams`.
        output: see `Output`. For pooled states every row of the prompt has to be computed, so that such a request reads
            no kept KV, whatever its mode; it ends with its prompt, and nothing is sampled.
        mode: which kept KV may be read.
        tenant: stands at the root of every prefix key; requests of different tenants share nothing.
        spans: reused spans, sorted, disjoint; only read in mode SCREENED. Their residents need not be pinned: one that
            is gone when the request is admitted is prefilled, and counted in `TokenSources.fallbacks`.
        selector: what to repair; required when there are spans.
        forced_output: instead of sampling, emit these ids (computed in chunks: their KV is that of decode). max_tokens
            and stop ids are not looked at.
        return_logits: put the logits behind every emitted token into `StepOutput.logits`.
        num_logprobs: put the log-probability of every emitted token, and of so many of the most likely ones, into
            `StepOutput.logprobs`; 0 gives the token's own alone, None nothing.
        prompt_logprobs: the same for the prompt's tokens, in `StepOutput.prompt_logprobs`. Every row of the prompt then
            has to be computed, so that such a request reads no kept KV, whatever its mode; it runs in chunks of
            `agentkv_engine.sampling.sampler.MOST_SCORED_ROWS`, so that logits stay few.
        constraint: what the output must look like; the object is the request's own from now on.
    """

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output: Output = Output.TOKENS
    mode: ReuseMode = ReuseMode.EXACT
    tenant: str = ""
    spans: tuple[PlacedSpan, ...] = ()
    selector: Selector | None = None
    forced_output: tuple[int, ...] | None = None
    return_logits: bool = False
    num_logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: TokenConstraint | None = None

    @property
    def wants_distributions(self) -> bool:
        """Whether the logits behind every emitted token are wanted, forced ones too."""
        return self.return_logits or self.num_logprobs is not None

    @property
    def computes_all(self) -> bool:
        """Whether every row of the prompt has to be computed: then no kept KV is read, whatever the mode."""
        return self.prompt_logprobs is not None or self.output is Output.POOLED_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSources:
    """Where the KV of a prompt's tokens came from; prefix + reused + repaired + computed = prompt.

    Attributes:
        prompt: tokens of the prompt.
        prefix: read from the prefix index.
        reused: read from residents, not recomputed.
        repaired: in a reused span, recomputed through at least one layer.
        computed: fresh.
        probe_row_layers, repair_row_layers, fresh_row_layers: layers actually run, summed over rows, by kind of work;
            a full prefill has prompt * num_layers fresh ones.
        screening_row_layers: work of looking at attention to make the plan, as rows through one layer's linears.
        spans: placed spans of residents that were read, as half-open position ranges.
        restored: tokens of these that had left the pool and were brought back for this request.
        left: what the plan left unrepaired, see `RepairPlan.left`; None where nothing was planned.
        fallbacks: reasons why reuse that was asked for did not happen, e.g. `segment_gone`, `no_room`, with counts.
    """

    prompt: int
    prefix: int
    reused: int
    repaired: int
    computed: int
    probe_row_layers: int = 0
    repair_row_layers: int = 0
    fresh_row_layers: int = 0
    screening_row_layers: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    restored: int = 0
    left: float | None = None
    fallbacks: tuple[tuple[str, int], ...] = ()

    @property
    def row_layers(self) -> int:
        """All layers run for the prompt, summed over rows, and the work of screening."""
        return self.probe_row_layers + self.screening_row_layers + self.repair_row_layers + self.fresh_row_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What one step brought for one request.

    Attributes:
        request_id: whose.
        token_ids: tokens emitted in this step (several when forced).
        logits: float32 [len(token_ids), vocabulary], the distribution each token was taken from, if asked for.
        logprobs: one for each of `token_ids`, if asked for.
        prompt_logprobs: one for each token of the prompt, if asked for, None for the first; set in the output that
            brings the first token.
        pooled: float32 [hidden size] on CPU, the mean of the prompt's hidden states behind the last layer and its norm;
            set in the only output of a request that asked for it.
        finish_reason: set in the request's last output.
        sources: set in the output that brings the first token, or the pooled states; of a watched request in every one,
            since more may have been repaired.
        admitted_at: `time.perf_counter()` when the engine first took the request up, before it looked for what it may
            read; set in the first output.
        error: why the request ended without an answer; nothing else is set then.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logits: torch.Tensor | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    pooled: torch.Tensor | None = None
    finish_reason: FinishReason | None = None
    sources: TokenSources | None = None
    admitted_at: float | None = None
    error: EngineError | None = None

    def up_to(self, count: int) -> "StepOutput":
        """The same with its first `count` tokens alone; why the request ended stays."""
        if count == len(self.token_ids):
            return self
        logits = None if self.logits is None else self.logits[:count]
        return replace(self, token_ids=self.token_ids[:count], logits=logits, logprobs=self.logprobs[:count])
