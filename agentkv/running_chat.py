"""One chat while the engine works on it: text from tokens, stop strings, usage."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace

from agentkv.api import ChatDelta, ChatRequest, PromptEcho, ReuseUsage, Usage
from agentkv.coverage import Coverage
from agentkv.dialect import ReplyPiece, ReplyReader
from agentkv.sampling import TokenLogprob
from agentkv.screening.calibration import Calibration
from agentkv.screening.selectors.budget import BudgetedSelector
from agentkv.screening.selectors.until import Until
from agentkv.segment_records import Origin
from agentkv.stream import DeltaStream
from agentkv.text_cut import overlap
from agentkv.tokenization import Detokenizer, Prompt, PromptMessage
from agentkv_engine.request import FinishReason, Request, StepOutput, TokenLogprobs, TokenSources
from agentkv_engine.reuse import PlacedSpan


class StopStrings:
    """Cuts a text at the first stop string, and holds back what might yet become one.

    Args:
        stops: strings that end the text; they are cut from it.

    Attributes:
        which: the one that was found.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.which: str | None = None

    def feed(self, text: str) -> str:
        """Text that is safe to give out after this piece."""
        held = self._held + text
        cuts = [(held.find(stop), stop) for stop in self._stops if stop in held]
        if cuts:
            cut, self.which = min(cuts)
            self._held = ""
            return held[:cut]
        keep = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held


@dataclass(slots=True, eq=False)
class RunningChat:
    """State of one chat, touched by the engine's thread only.

    Attributes:
        chat: what was asked.
        tenant: whose, with the chat's salt.
        prompt: the tokenised messages.
        request: what the engine is given.
        selector: the rule of a screened chat, for the worth check.
        origin: label of the agent that answers, and its thread.
        authors: who wrote the segments that it reads, by handle.
        calibration: estimates the error of what is reused.
        misses: reasons why reuse did not happen.
        new_messages: messages worth keeping that are not known yet.
        awaited: words (tenant, digest) for which it has waited already.
        reply: reads what is generated: thoughts, content, calls.
        token_ids: the reply so far, as emitted.
        num_reasoning: those of them that the model thought with.
    """

    chat: ChatRequest
    tenant: str
    prompt: Prompt
    request: Request
    selector: BudgetedSelector | None
    stream: DeltaStream
    detokenizer: Detokenizer
    stops: StopStrings
    reply: ReplyReader
    num_layers: int
    origin: Origin
    submitted: float
    authors: dict[int, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    misses: Counter[str] = field(default_factory=Counter)
    new_messages: tuple[PromptMessage, ...] = ()
    awaited: set[tuple[str, int]] = field(default_factory=set)
    token_ids: list[int] = field(default_factory=list)
    num_reasoning: int = 0
    sources: TokenSources | None = None
    queue: float | None = None
    ttft: float | None = None

    def place(self, spans: tuple[PlacedSpan, ...]) -> None:
        """Let the engine read these spans."""
        self.request = replace(self.request, spans=spans)

    def take(self, output: StepOutput) -> tuple[ReplyPiece, FinishReason | None, StepOutput]:
        """What this output brings, why the chat ends now, if it does, and the part of the output up to there: a stop
        string may end it early, and tokens that come together need not all count."""
        if output.sources is not None:
            self.sources = output.sources
        if output.admitted_at is not None:
            self.ttft = time.perf_counter() - self.submitted
            self.queue = output.admitted_at - self.submitted
        piece, count = "", 0
        while count < len(output.token_ids) and self.stops.which is None:
            piece += self.stops.feed(self.detokenizer.feed(output.token_ids[count : count + 1]))
            count += 1
        output = output.up_to(count)
        self.token_ids += output.token_ids
        ended = output.finish_reason
        if ended is not None and self.stops.which is None:
            piece += self.stops.feed(self.detokenizer.finish())
        if self.stops.which is not None:
            ended = FinishReason.STOP
        elif ended is not None:
            piece += self.stops.flush()
        read = self.reply.feed(piece)
        return (read if ended is None else read + self.reply.finish()), ended, output

    def usage(self) -> Usage:
        """Counts and times so far."""
        num_prompt = len(self.prompt.token_ids)
        sources = self.sources or TokenSources(prompt=num_prompt, prefix=0, reused=0, repaired=0, computed=0)
        misses = self.misses + Counter(dict(sources.fallbacks))
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=len(self.token_ids),
            reasoning_tokens=self.num_reasoning,
            reuse=ReuseUsage(
                prefix=sources.prefix,
                reused=sources.reused,
                repaired=sources.repaired,
                computed=sources.computed,
                segments=len(sources.spans),
                restored=sources.restored,
                row_layers=sources.row_layers,
                full_row_layers=sources.prompt * self.num_layers,
                selector=self.selector.name if self.selector is not None and sources.spans else "",
                agent=self.origin.agent,
                authors=self._tokens_by_author(sources),
                misses=dict(sorted(misses.items())),
                estimated_kl=self._estimated_kl(sources),
            ),
            queue=self.queue,
            ttft=self.ttft,
            duration=time.perf_counter() - self.submitted,
        )

    def _tokens_by_author(self, sources: TokenSources) -> dict[str, int]:
        """Tokens in the spans that were read, by the author of the segment behind each."""
        tokens: Counter[str] = Counter()
        read = Coverage(sources.spans)
        for span in self.request.spans if sources.spans else ():
            if span.handle in self.authors:
                tokens[self.authors[span.handle]] += read.count(span.start, span.end)
        return dict(sorted((+tokens).items()))

    def _estimated_kl(self, sources: TokenSources) -> float | None:
        if self.calibration is None or self.selector is None or not sources.spans:
            return None
        rule = self.selector.inner if isinstance(self.selector, Until) else self.selector
        return self.calibration.estimate(rule.name, sources.left)

    def delta(self, piece: ReplyPiece, output: StepOutput, ended: FinishReason | None) -> ChatDelta:
        """What the reader gets of an output."""
        called = ended is FinishReason.STOP and self.reply.calls
        return ChatDelta(
            text=piece.text,
            reasoning=piece.reasoning,
            tool_calls=piece.tool_calls,
            echo=self._echo(output) if self.chat.echo and output.admitted_at is not None else None,
            token_ids=output.token_ids,
            logprobs=tuple(self._told(logprobs) for logprobs in output.logprobs),
            logits=output.logits,
            finish_reason="tool_calls" if called else None if ended is None else str(ended),
            stopped_by=self.stops.which,
            usage=None if ended is None else self.usage(),
        )

    def _echo(self, output: StepOutput) -> PromptEcho:
        pieces = [self.detokenizer.bytes_of(token_id) for token_id in self.prompt.token_ids]
        told = output.prompt_logprobs or ()
        return PromptEcho(
            text=b"".join(pieces).decode(errors="replace"),
            tokens=tuple(piece.decode(errors="replace") for piece in pieces),
            logprobs=tuple(logprobs and self._told(logprobs) for logprobs in told),
        )

    def _told(self, logprobs: TokenLogprobs) -> TokenLogprob:
        top = tuple(self._token(token_id, value) for token_id, value in logprobs.top)
        return replace(self._token(logprobs.token_id, logprobs.logprob), top=top)

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        utf8 = self.detokenizer.bytes_of(token_id)
        return TokenLogprob(token=utf8.decode(errors="replace"), utf8=utf8, logprob=logprob)
