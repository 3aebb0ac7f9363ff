"""From what a chat asks for to the constraint of its reply."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentkv.api import ChatRequest, Tool
from agentkv.dialect import Speech
from agentkv.errors import InvalidRequest
from agentkv.grammar.constraint import GrammarConstraint
from agentkv.grammar.lark import calls_answer, free_answer, json_answer, json_text, reply_grammar
from agentkv.tokenization import ChatTokenizer, Prompt

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MOST_SCHEMA = 1 << 18
"""Most characters of the JSON schemas that one reply is held to."""


class GrammarCompiler:
    """Compiles grammars for one model. Thread-safe.

    Args:
        tokenizer: the model's.
        speech: how it calls tools, and whether it thinks.
    """

    def __init__(self, tokenizer: ChatTokenizer, speech: Speech) -> None:
        self._tokenizer = tokenizer
        self._speech = speech

    def constraint(self, request: ChatRequest, prompt: Prompt) -> GrammarConstraint | None:
        """What the reply must look like; None where it is free.

        Raises:
            InvalidRequest: a schema that is wrong or uses keywords that can't be held to; the message names them.
        """
        answer = self._answer(request, prompt)
        if answer is None:
            return None
        thinks, opened = self._speech.may_think(request, prompt), self._speech.opens_thoughts(prompt)
        return self._compile(reply_grammar(answer, thinks=thinks, opened=opened))

    def _answer(self, request: ChatRequest, prompt: Prompt) -> str | None:
        use = request.tools
        if use is not None and use.choice == "required":
            self._check_tools(use.callable_tools)
            return calls_answer(use.callable_tools, self._speech.dialect.shape, parallel=use.parallel)
        if request.response_format is not None:
            _check_size([request.response_format.schema], "response_format")
            self._check_schema(request.response_format.schema, "response_format", request.response_format.name)
            return json_answer(request.response_format.schema)
        if use is not None and use.choice == "auto" and any(tool.strict for tool in use.callable_tools):
            self._check_tools([tool for tool in use.callable_tools if tool.strict])
            thinks = self._speech.may_think(request, prompt) and not self._speech.opens_thoughts(prompt)
            shape = self._speech.dialect.shape
            return free_answer(use.callable_tools, shape, parallel=use.parallel, thinks=thinks)
        return None

    def _check_tools(self, tools: Sequence[Tool]) -> None:
        _check_size([tool.arguments_schema for tool in tools], "tools")
        for tool in tools:
            self._check_schema(tool.arguments_schema, "tools", tool.name)

    def _check_schema(self, schema: Mapping[str, Any], param: str, name: str) -> None:
        """Each schema by itself, so that the message can name it."""
        problem = self._problem(reply_grammar(f"answer: {json_text(schema)}", thinks=False, opened=False))
        if problem:
            raise InvalidRequest(
                f"the JSON schema of {name!r} can't be held to: {problem}", param=param, code="unsupported_schema"
            )

    def _problem(self, grammar: str) -> str:
        from llguidance import LLMatcher  # noqa: PLC0415 - most servers never compile a grammar

        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._ll_tokenizer)
        return messages[0].partition("\n")[0] if failed else ""

    def _compile(self, grammar: str) -> GrammarConstraint:
        from llguidance import LLMatcher  # noqa: PLC0415

        matcher = LLMatcher(self._ll_tokenizer, grammar, log_level=0)
        if matcher.is_error():
            message = f"the grammar of the reply can't be made: {matcher.get_error()}; ask for simpler schemas"
            raise InvalidRequest(message, param="response_format", code="unsupported_schema")
        return GrammarConstraint(matcher, num_words=(self._ll_tokenizer.vocab_size + 31) // 32)

    @cached_property
    def _ll_tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer  # noqa: PLC0415

        ends = sorted(self._tokenizer.stop_token_ids)
        return LLTokenizer(self._tokenizer.as_json, eos_token=ends)


def _check_size(schemas: Sequence[Mapping[str, Any]], param: str) -> None:
    try:
        size = sum(len(json.dumps(schema)) for schema in schemas)
    except RecursionError:
        message = "a JSON schema is nested too deeply to be held to: ask for a flatter one"
        raise InvalidRequest(message, param=param, code="unsupported_schema") from None
    if size > MOST_SCHEMA:
        message = (
            f"the JSON schemas have {size} characters, and replies are held to at most {MOST_SCHEMA}: shorten them"
        )
        raise InvalidRequest(message, param=param, code="unsupported_schema")
