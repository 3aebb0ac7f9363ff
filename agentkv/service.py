"""The composition root: a chat's text goes in, its prompt is recognised and planned, submitted, streamed, and kept."""

import logging
import time
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import torch

from agentkv.api import ChatDelta, ChatRequest
from agentkv.chat_prompts import ChatPrompts
from agentkv.config import ServiceConfig
from agentkv.coverage import Coverage
from agentkv.embedded import model_name
from agentkv.embedder import Embedder
from agentkv.engine_failures import failure_of
from agentkv.engine_requests import EngineRequests
from agentkv.engine_thread import EngineThread
from agentkv.errors import ConfigError, InvalidRequest, ModelError, ServiceClosed
from agentkv.grammar import GrammarCompiler
from agentkv.hub import find_model
from agentkv.keeper import Keeper
from agentkv.kept_segments import KeptSegments
from agentkv.owner import owner_of
from agentkv.running_chat import RunningChat, StopStrings
from agentkv.screening.calibration import Calibration
from agentkv.screening.worth import WorthCheck
from agentkv.segment import Recognizer
from agentkv.segment_records import Origin
from agentkv.stream import DeltaStream, WakeUps
from agentkv.texts import Texts
from agentkv.tokenization import ChatTokenizer
from agentkv.writers import Writers
from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.engine import Engine, MemoryStats
from agentkv_engine.errors import (
    CheckpointError,
    DeviceUnavailable,
    EngineError,
    OutOfMemory,
    PipelineRefused,
    RequestRefused,
    RunnerLost,
)
from agentkv_engine.request import FinishReason, ReuseMode, StepOutput
from agentkv_engine.reuse import ReuseView

_ASIDE_SECONDS = 2e-4
"""How long the engine's thread steps aside when a first token is there: a loop wakes up and sends it meanwhile, and
would have to wait for the interpreter otherwise."""

_logger = logging.getLogger(__name__)


class Service:
    """Answers chats with one model; implements `agentkv.api.ChatService`. Use it as a context manager, or close it.

    Args:
        engine: runs the model; owned by the service from now on.
        tokenizer: the model's.
        config: see `ServiceConfig`.
        model_id: name of the model.
        keeper: holds kept KV; attached to `engine`, whose `on_evict` is `keeper.evicted` and whose `on_missing` is
            `keeper.missing`.
        recognizer: the one that `keeper` registers with.
        calibration: estimates the error of screened chats.

    Attributes:
        segments: what is kept, for its owners to see and manage.
        embedder: texts to vectors.
        texts: texts to tokens and back.

    Raises:
        ConfigError: there is a target for that error, and no calibration, or none for the configured rule.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        config: ServiceConfig,
        *,
        model_id: str,
        keeper: Keeper,
        recognizer: Recognizer,
        calibration: Calibration | None = None,
    ) -> None:
        self.model_id = model_id
        self.context_length = engine.max_tokens
        self._num_layers = engine.model_config.num_layers
        self._config = config
        self._tokenizer = tokenizer
        self._prompts = ChatPrompts(tokenizer)
        self._grammars = GrammarCompiler(tokenizer, self._prompts.speech)
        self._recognizer = recognizer
        self._keeper = keeper
        break_even = calibration.break_even.get(engine.device_type) if calibration else None
        self._worth = WorthCheck() if break_even is None else WorthCheck(min_reused=break_even)
        self._calibration = calibration
        self._requests = EngineRequests(engine, tokenizer, config, self._grammars, calibration)
        self._running: dict[str, RunningChat] = {}
        self._writers = Writers()
        self._wake_ups = WakeUps()
        self._engine = engine
        self._thread = EngineThread(engine, self._on_outputs, self._on_failure)
        self.texts = Texts(tokenizer, self._prompts)
        most_prompt_tokens = min(engine.max_tokens - 1, config.max_prompt_tokens or engine.max_tokens)
        self.embedder = Embedder(engine, self._thread, tokenizer, most_prompt_tokens)
        self.segments = KeptSegments(keeper, self._thread)

    @classmethod
    def open(cls, model: Path | str, config: ServiceConfig | None = None) -> "Service":
        """Load a model, from a Hugging Face directory or the Hub, and start serving it.

        Raises:
            ModelError: the model can't be found or served; says what is missing or unsupported.
            ConfigError: the KV memory holds no block, a device is not here, stages can't be made or started, or the
                calibration can't be used.
            InvalidRequest: the configured selector does not exist.
        """
        config = config or ServiceConfig()
        engine_config = _engine_config(config)
        try:
            model = find_model(
                model,
                revision=config.revision,
                before_weights=lambda directory: Engine.check_supported(directory, engine_config),
            )
        except CheckpointError as error:
            raise ModelError(str(error)) from error
        calibration = Calibration.load(config.calibration, model) if config.calibration else None
        if calibration and calibration.trace_layers not in (None, config.trace_layers):
            raise ConfigError(
                f"the calibration was made with trace_layers {calibration.trace_layers}, not {config.trace_layers}: "
                "serve with the same, or make one with agentkv calibrate"
            )
        tokenizer = ChatTokenizer.from_directory(model)
        recognizer = Recognizer(min_tokens=config.min_segment_tokens)
        policy = Keeper.eviction_policy()
        keeper = Keeper(recognizer, policy, config.max_kept_per_tenant)
        try:
            engine = Engine.from_directory(
                model, engine_config, eviction=policy, on_evict=keeper.evicted, on_missing=keeper.missing
            )
        except CheckpointError as error:
            raise ModelError(str(error)) from error
        except (DeviceUnavailable, OutOfMemory, PipelineRefused, RequestRefused, RunnerLost) as error:
            raise ConfigError(str(error)) from error
        with ExitStack() as undo:
            undo.callback(engine.close)
            keeper.attach(engine, max_bytes=config.kv_memory)
            service = cls(
                engine,
                tokenizer,
                config,
                model_id=model_name(model),
                keeper=keeper,
                recognizer=recognizer,
                calibration=calibration,
            )
            undo.pop_all()
        return service

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, request: ChatRequest, *, tenant: str = "") -> DeltaStream:
        """See `ChatService.submit`; tokenises in the caller's thread."""
        submitted = time.perf_counter()
        owner = owner_of(tenant, request.cache_salt)
        prompt = self._prompts.write(request, owner)
        selector = self._requests.selector(request)
        engine_request = self._requests.make(request, prompt, owner, selector)
        stream = DeltaStream(lambda: self._cancel(engine_request.request_id), self._wake_ups)
        chat = RunningChat(
            chat=request,
            tenant=owner,
            prompt=prompt,
            request=engine_request,
            selector=selector,
            stream=stream,
            detokenizer=self._tokenizer.detokenizer(),
            stops=StopStrings(request.stop),
            reply=self._prompts.speech.reader(request, prompt),
            num_layers=self._num_layers,
            origin=Origin(agent=request.agent or _label(request), thread=request.thread),
            submitted=submitted,
            calibration=self._calibration,
        )
        self._thread.post(lambda: self._admit(chat))
        return stream

    def count_tokens(self, request: ChatRequest, *, tenant: str = "") -> int:
        """Tokens of a chat's prompt. Raises what `submit` raises for messages that can't be rendered."""
        return len(self._prompts.write(request, owner_of(tenant, request.cache_salt)).token_ids)

    def memory(self) -> MemoryStats:
        """How the pool's blocks are held now; waits for the step under way."""
        return self._thread.ask(lambda engine: engine.memory())

    def kv_bytes(self) -> dict[str, int]:
        """Bytes of KV that is kept, by tier; waits for the step under way."""

        def count(engine: Engine) -> dict[str, int]:
            below = {name: usage.num_bytes for name, usage in self._keeper.usage_by_tier().items() if name != "pool"}
            return {"pool": engine.memory().kept_bytes, **below}

        return self._thread.ask(count)

    def health(self) -> dict[str, object]:
        """What `/health` shows. `status` is `ok`, `restarting` while the engine's processes are started again, or
        `closed` once nothing is served any more."""
        ready = "ok" if self._engine.is_ready else "restarting"
        return {"status": ready if self._thread.is_running else "closed"}

    def check(self) -> None:
        """Integrity of pool, store and recognizer, for tests; raises AssertionError."""

        def check(engine: Engine) -> None:
            engine.check()
            self._keeper.check()

        self._thread.ask(check)

    def close(self) -> None:
        """Stop; running chats end with `ServiceClosed`."""
        self._thread.close()
        self._fail_all(ServiceClosed("the service was closed while this chat ran: start it again and ask again"))
        self._engine.close()  # may wait for processes: nobody waits with it

    def _admit(self, chat: RunningChat) -> None:
        """Recognise and plan, and ask the engine; or wait for a chat that is computing the same new words."""
        self._running[chat.request.request_id] = chat
        try:
            chat.misses.clear()
            if chat.request.mode is ReuseMode.SCREENED:
                self._place_spans(chat)
                if self._writers.wait_for_words(chat):
                    return
            self._engine.add(chat.request)
        except RequestRefused as error:
            self._end(chat, InvalidRequest(str(error)))
        except Exception as error:
            self._give_up(chat, error)

    def _place_spans(self, chat: RunningChat) -> None:
        recognition = self._recognizer.recognise(chat.prompt, chat.tenant)
        chat.misses += recognition.misses
        selector = chat.selector
        known = Coverage((span.start, span.end) for span in recognition.spans)
        worth_keeping = (m for m in chat.prompt.messages if m.num_tokens >= self._config.min_segment_tokens)
        chat.new_messages = tuple(message for message in worth_keeping if known.is_new(message))
        new = Coverage((message.start, message.end) for message in chat.new_messages)
        spans = tuple(span for span in recognition.spans if not new.count(span.start, span.end))
        chat.misses["mostly_new"] += len(recognition.spans) - len(spans)
        if spans and selector is not None:
            view = ReuseView(
                num_tokens=len(chat.prompt.token_ids), num_layers=self._num_layers, num_prefix=0, spans=spans
            )
            if (reason := self._worth.reason_against(view, selector)) is not None:
                chat.misses[reason] += len(spans)
                spans = ()
        if spans:
            chat.authors = self._keeper.mark_read(recognition.segments, chat.origin)
        chat.place(spans)

    def _on_outputs(self, outputs: list[StepOutput]) -> None:
        with self._wake_ups.together():
            for output in outputs:
                self._on_output(output)

    def _on_output(self, output: StepOutput) -> None:
        if self.embedder.take(output):
            return
        chat = self._running.get(output.request_id)
        if chat is None:  # it was cancelled during the step
            return
        try:
            self._take(chat, output)
        except Exception as error:
            self._give_up(chat, error)

    def _give_up(self, chat: RunningChat, error: Exception) -> None:
        """A fault of ours that struck one chat: the others go on."""
        _logger.exception("chat %s failed", chat.request.request_id, exc_info=error)
        self._engine.abort(chat.request.request_id)
        failure = ServiceClosed("this chat failed by a fault of the service, which its log tells: ask again")
        failure.__cause__ = error
        self._end(chat, failure)

    def _take(self, chat: RunningChat, output: StepOutput) -> None:
        if output.error is not None:
            self._end(chat, failure_of(output.error))
            return
        piece, ended, output = chat.take(output)
        if ended is None:  # the reader need not wait until the prompt is kept
            chat.stream.push(chat.delta(piece, output, None))
        if output.admitted_at is not None:
            self._wake_ups.flush(aside=_ASIDE_SECONDS)
            self._prompt_is_done(chat)
        if ended is not None:
            self._reply_is_done(chat, stopped_early=output.finish_reason is None)
            chat.stream.push(chat.delta(piece, output, ended))

    def _prompt_is_done(self, chat: RunningChat) -> None:
        if chat.request.mode is ReuseMode.SCREENED:
            assert chat.sources is not None
            self._keeper.keep_prompt(chat.request, chat.prompt, chat.sources, chat.origin)
        self._release_waiting(chat)

    def _reply_is_done(self, chat: RunningChat, *, stopped_early: bool) -> None:
        """Keep the reply before its last byte is given out, so that whoever reads it finds its KV."""
        if stopped_early:
            self._engine.finish(chat.request.request_id)
        generated = self._prompts.remember(chat.tenant, chat.reply, chat.token_ids)
        if chat.reply.has_thought:
            chat.num_reasoning = len(chat.token_ids) if generated is None else len(generated.before)
        if generated is not None and chat.request.mode is ReuseMode.SCREENED:
            self._keeper.keep_reply(chat.request, chat.prompt, generated, len(chat.token_ids), chat.origin)
        del self._running[chat.request.request_id]

    def _cancel(self, request_id: str) -> None:
        def cancel() -> None:
            chat = self._running.get(request_id)
            if chat is not None:
                self._engine.abort(request_id)
                self._writers.stop_waiting(chat)
                ended = FinishReason.ABORT
                delta = ChatDelta(text="", finish_reason=str(ended), usage=chat.usage())
                self._end(chat, None)
                chat.stream.push(delta)

        try:
            self._thread.post(cancel)
        except ServiceClosed:
            return  # closing has ended the chat already

    def _end(self, chat: RunningChat, error: Exception | None) -> None:
        """Forget a chat that did not come to its own end; those that waited for its words go on without."""
        self._running.pop(chat.request.request_id, None)
        self._release_waiting(chat)
        if error is not None:
            chat.stream.fail(error)

    def _release_waiting(self, chat: RunningChat) -> None:
        for waiting in self._writers.done(chat):
            self._admit(waiting)

    def _on_failure(self, error: Exception) -> None:
        _logger.critical("the engine failed, the service stops", exc_info=error)
        failure = ServiceClosed("the engine failed and the service stopped, its log tells why: start it again")
        failure.__cause__ = error
        self._fail_all(failure)

    def _fail_all(self, error: EngineError | ServiceClosed) -> None:
        for chat in list(self._running.values()):
            chat.stream.fail(error)
        self._running.clear()
        self.embedder.fail_all(error)


def _engine_config(config: ServiceConfig) -> EngineConfig:
    return EngineConfig(
        kv_memory=config.kv_memory,
        host_kv_memory=config.host_kv_memory,
        max_rows_per_step=config.max_rows_per_step,
        budget=config.budget,
        max_sequences=config.max_sequences,
        context_length=config.context_length,
        device=config.device,
        pipeline=_pipeline(config),
        dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
        quantization=config.quantization,
        trace_layers=tuple(range(1, 1 + config.trace_layers)),
    )


def _pipeline(config: ServiceConfig) -> PipelineConfig | None:
    if config.pipeline_stages is None:
        if (config.devices, config.layers, config.steps_under_way) != (None, None, None):
            raise ConfigError("devices, layers and steps under way are those of stages: give --pipeline-stages too")
        return None
    if config.host_kv_memory:
        raise ConfigError("host KV memory needs the model in one process: leave out --host-kv-memory with stages")
    return PipelineConfig(
        num_stages=config.pipeline_stages,
        devices=tuple(config.devices.split(",")) if config.devices else (),
        layers=tuple(map(int, config.layers.split(","))) if config.layers else (),
        steps_under_way=config.steps_under_way,
    )


def _label(request: ChatRequest) -> str:
    """An agent is known by its system prompt where nobody says its name; for statistics only."""
    system = "\0".join(message.content for message in request.messages if message.role == "system")
    return "agent-" + blake2b(system.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
