"""Replies held to a grammar, token by token: JSON of a schema, and tool calls.

    compiler = GrammarCompiler(tokenizer, speech)
    constraint = compiler.constraint(request, prompt)      # a TokenConstraint, or None; raises InvalidRequest

llguidance (https://github.com/guidance-ai/llguidance) does the parsing; it is imported when the first grammar is.
"""

from agentkv.grammar.compiler import GrammarCompiler

__all__ = ["GrammarCompiler"]
