"""How a model writes what is more than content: its thoughts, and the tools it calls, as text.

    speech = Speech(template)                              # asks the model's chat template
    messages, variables = speech.write(request, spoken)    # calls in history as the model writes them, tools
    reader = speech.reader(request, prompt)                # .feed(text): reasoning, content and calls, as they come

A call in history is written out here and handed to the template as content. So it has its place in the prompt like any
other text, and the words of a reply that called tools are recognised and spliced when they come back.
"""

from agentkv.dialect.reply_reader import ReplyPiece, ReplyReader
from agentkv.dialect.speech import Speech
from agentkv.dialect.tool_dialect import CallShape, ToolDialect

__all__ = ["CallShape", "ReplyPiece", "ReplyReader", "Speech", "ToolDialect"]
