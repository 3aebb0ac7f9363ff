"""From a chat to what the engine is asked: its rule, its sampling, its limits; what can never run is refused here."""

from itertools import count

from agentkv.api import ChatRequest, Reuse
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError, ContextTooLong, InvalidRequest
from agentkv.grammar import GrammarCompiler
from agentkv.screening.calibration import Calibration
from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.draft_reading import DraftReading
from agentkv.screening.selectors.reading_change import ReadingChange
from agentkv.screening.selectors.registry import parse_selector
from agentkv.screening.selectors.until import Until
from agentkv.tokenization import ChatTokenizer, Prompt
from agentkv_engine.engine import Engine
from agentkv_engine.errors import RequestRefused
from agentkv_engine.request import MOST_LOGPROBS, Request, ReuseMode, SamplingParams, check_sampling


class EngineRequests:
    """Makes the engine's requests of one service.

    Raises:
        InvalidRequest: the configured selector does not exist.
        ConfigError: it can't be used with this engine, or its error can't be estimated as is asked for.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        config: ServiceConfig,
        grammars: GrammarCompiler,
        calibration: Calibration | None,
    ) -> None:
        self._context_length = engine.max_tokens
        self._vocab_size = engine.model_config.vocab_size
        self._traced_layers = engine.traced_layers
        self._tokenizer = tokenizer
        self._config = config
        self._grammars = grammars
        self._calibration = calibration
        self._default_selector = self._until(parse_selector(config.selector))
        self._ids = count()

    def selector(self, chat: ChatRequest) -> BudgetedSelector | None:
        """The rule of a screened chat.

        Raises:
            InvalidRequest: it does not exist, whatever the mode, or its error can't be estimated as is asked for.
        """
        try:
            selector = self._until(parse_selector(chat.selector)) if chat.selector else self._default_selector
        except ConfigError as error:
            raise InvalidRequest(str(error), param="selector") from error
        return selector if (chat.reuse or self._config.reuse) is Reuse.SCREENED else None

    def make(self, chat: ChatRequest, prompt: Prompt, tenant: str, selector: BudgetedSelector | None) -> Request:
        """The chat as the engine is asked, before anything is looked up.

        Raises:
            InvalidRequest: a field that can't be used.
        """
        self._check(chat, prompt)
        forced = None
        if chat.forced_reply is not None:
            end = self._tokenizer.end_of_turn_id
            forced = self._tokenizer.encode(chat.forced_reply) + (() if end is None else (end,))
        room = min(self._context_length - len(prompt.token_ids), self._config.max_reply_tokens or self._context_length)
        sampling = self._sampling(chat, room)
        if forced is not None and len(forced) > room:
            raise ContextTooLong(f"the forced reply has {len(forced)} tokens, and the prompt leaves room for {room}")
        return Request(
            request_id=f"chat-{next(self._ids)}",
            token_ids=prompt.token_ids,
            sampling=sampling,
            mode=ReuseMode((chat.reuse or self._config.reuse).value),
            tenant=tenant,
            selector=selector,
            forced_output=forced,
            return_logits=chat.return_logits,
            num_logprobs=chat.sampling.logprobs,
            prompt_logprobs=chat.prompt_logprobs,
            constraint=None if forced is not None else self._grammars.constraint(chat, prompt),
        )

    def _sampling(self, chat: ChatRequest, room: int) -> SamplingParams:
        wanted = chat.sampling
        sampling = SamplingParams(
            temperature=chat.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            min_p=wanted.min_p,
            repetition_penalty=wanted.repetition_penalty,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            logit_bias=wanted.logit_bias,
            max_tokens=min(chat.max_tokens or room, room),
            min_tokens=wanted.min_tokens,
            stop_token_ids=frozenset() if wanted.ignore_eos else self._tokenizer.stop_token_ids,
            seed=chat.seed,
        )
        try:
            check_sampling(sampling, self._vocab_size)
        except RequestRefused as error:
            raise InvalidRequest(str(error), param=error.param) from None
        if not 0 <= (wanted.logprobs or 0) <= MOST_LOGPROBS:
            raise InvalidRequest(f"logprobs is {wanted.logprobs}: give 0..{MOST_LOGPROBS}", param="logprobs")
        return sampling

    def _until(self, selector: BudgetedSelector) -> BudgetedSelector:
        """The rule, or one that deepens it to the service's target."""
        if isinstance(selector, (ReadingChange, DraftReading)) and not self._traced_layers:
            raise ConfigError(f"{selector.name} asks traces, and no layer is traced: set trace_layers to 1 or more")
        if isinstance(selector, DraftReading) and self._config.pipeline_stages is not None:
            raise ConfigError(f"{selector.name} watches the reply, which a pipeline can't: take reading_change")
        if self._config.target_kl is None:
            return selector
        if isinstance(selector, DraftReading):
            raise ConfigError(f"{selector.name} can't follow a target KL yet: take reading_change, or no target")
        if self._calibration is None:
            raise ConfigError("a target KL needs a calibration of this model: make one with agentkv calibrate")
        return Until(inner=selector, target=self._config.target_kl, calibration=self._calibration)

    def _check(self, chat: ChatRequest, prompt: Prompt) -> None:
        num_tokens, limit = len(prompt.token_ids), self._context_length - 1
        if num_tokens > limit:
            raise ContextTooLong(
                f"the prompt has {num_tokens} tokens, and at most {limit} leave room for a reply: shorten the "
                "messages, or raise --kv-memory or --context-length where the model allows"
            )
        if num_tokens == 0:
            raise InvalidRequest("the chat template made no prompt of these messages: give a message", param="messages")
        allowed = self._config.max_prompt_tokens
        if allowed is not None and num_tokens > allowed:
            raise ContextTooLong(
                f"the prompt has {num_tokens} tokens, and this server takes {allowed}: shorten the messages"
            )
        if chat.max_tokens is not None and chat.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {chat.max_tokens}: ask for at least 1", param="max_tokens")
        most = self._config.max_reply_tokens
        if most is not None and chat.max_tokens is not None and chat.max_tokens > most:
            raise InvalidRequest(
                f"max_tokens is {chat.max_tokens}, and this server gives at most {most}", param="max_tokens"
            )
