"""What a request must hold to before it is queued: one that can never run is refused with what to change."""

from agentkv_engine.cache.residents import Residents
from agentkv_engine.errors import PromptTooLong, RequestRefused
from agentkv_engine.request import Output, Request, ReuseMode
from agentkv_engine.sampling.params import MOST_LOGPROBS, check_sampling


def check_request(
    request: Request, *, vocab_size: int, context_length: int, max_tokens: int, residents: Residents
) -> None:
    """Check a request for one engine.

    Args:
        request: as it was given.
        vocab_size: ids lie below it.
        context_length: most tokens that the model was made for.
        max_tokens: most tokens that there is KV for, too.
        residents: what its spans may read.

    Raises:
        RequestRefused: it can never run; the message says what to change.
    """
    num_tokens = len(request.token_ids)
    if num_tokens == 0:
        raise RequestRefused("the prompt is empty: give at least one token")
    _check_vocabulary(request.token_ids, vocab_size)
    if num_tokens > context_length - 1:
        raise PromptTooLong(num_tokens, context_length - 1, "the model's context", "shorten the messages")
    if num_tokens > max_tokens - 1:
        raise PromptTooLong(num_tokens, max_tokens - 1, "the KV memory", "raise --kv-memory or shorten it")
    _check_output(request, vocab_size)
    if request.forced_output is not None:
        _check_forced_output(request, request.forced_output, vocab_size, max_tokens)
    if request.mode is ReuseMode.SCREENED:
        _check_spans(request, residents)


def _check_vocabulary(token_ids: tuple[int, ...], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        raise RequestRefused(f"token ids must lie in 0..{vocab_size - 1}, not {min(token_ids)}..{max(token_ids)}")


def _check_output(request: Request, vocab_size: int) -> None:
    emits = request.wants_distributions or request.prompt_logprobs is not None or request.constraint is not None
    if request.output is Output.POOLED_STATES and (emits or request.forced_output is not None):
        raise RequestRefused("pooled states come without tokens: ask for tokens in a request of their own")
    check_sampling(request.sampling, vocab_size)
    for name, value in (("num_logprobs", request.num_logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if value is not None and not 0 <= value <= MOST_LOGPROBS:
            raise RequestRefused(f"{name} is {value}: give 0..{MOST_LOGPROBS}, or None", param=name)
    if request.constraint is not None and request.sampling.min_tokens:
        raise RequestRefused("a constraint decides when the output may end: give no min_tokens", param="min_tokens")


def _check_forced_output(request: Request, forced: tuple[int, ...], vocab_size: int, max_tokens: int) -> None:
    if request.constraint is not None:
        raise RequestRefused("a forced output is not sampled: give no constraint", param="constraint")
    if request.prompt_logprobs is not None:
        raise RequestRefused(
            "prompt_logprobs and a forced output exclude each other: put the output into the prompt",
            param="prompt_logprobs",
        )
    _check_vocabulary(forced, vocab_size)
    room = max_tokens - len(request.token_ids)
    if not 1 <= len(forced) <= room:
        raise RequestRefused(f"the forced output has {len(forced)} tokens: give 1..{room}")


def _check_spans(request: Request, residents: Residents) -> None:
    end = 0
    for span in request.spans:
        if not end <= span.start < span.end <= len(request.token_ids) or span.resident_start < 0:
            raise RequestRefused(f"span {span.start}..{span.end} is empty, out of order, or outside the prompt")
        end = span.end
        if span.handle in residents:
            here = request.token_ids[span.start : span.end]
            if residents.tokens_of(span) != here:
                raise RequestRefused(f"span {span.start}..{span.end} and its resident {span.handle} differ in tokens")
    if request.spans and request.selector is None:
        raise RequestRefused("spans need a selector that says what to repair: give `selector`")
