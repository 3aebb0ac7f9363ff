"""Prompts of chats, and what their replies mean: the tokenizer, how the model speaks, and what it said before."""

from agentkv.api import ChatRequest
from agentkv.dialect import ReplyReader, Speech
from agentkv.segment import GeneratedMemory, SpokenMemory
from agentkv.tokenization import ChatTokenizer, GeneratedText, Prompt


class ChatPrompts:
    """Writes the prompts of one model's chats. Thread-safe.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.speech = Speech(tokenizer.template)
        self._tokenizer = tokenizer
        self._generated = GeneratedMemory(tokenizer)
        self._spoken = SpokenMemory()

    def write(self, request: ChatRequest, tenant: str) -> Prompt:
        """The prompt of a chat; what was generated for the tenant before has the very tokens it had.

        Raises:
            TemplateRefused: the template's own words.
            InvalidRequest: text that is no Unicode, an option that can't be set.
        """
        if request.prompt is not None:
            return self._tokenizer.raw_prompt(request.prompt)
        messages, variables = self.speech.write(request, lambda message: self._spoken.find(tenant, message))
        splicer = self._generated.splicer(tenant)
        return self._tokenizer.prompt(messages, variables=variables, tenant=tenant, splicer=splicer)

    def remember(self, tenant: str, reply: ReplyReader, token_ids: list[int]) -> GeneratedText | None:
        """Remember what was said, and the tokens behind it; None where these are not known for its text."""
        spoken = reply.spoken.strip() if reply.calls else reply.spoken
        if reply.calls:
            self._spoken.remember(tenant, reply.content, reply.calls, spoken)
        return self._generated.remember(tenant, spoken, token_ids)
