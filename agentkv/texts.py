"""Texts and their tokens, for callers who count or look at tokens themselves."""

from collections.abc import Sequence

from agentkv.api import ChatMessage, ChatRequest
from agentkv.chat_prompts import ChatPrompts
from agentkv.errors import InvalidRequest
from agentkv.owner import owner_of
from agentkv.tokenization import ChatTokenizer


class Texts:
    """Tokenises as chats are tokenised. Thread-safe.

    Args:
        tokenizer: the model's.
        prompts: writes the prompts of chats.
    """

    def __init__(self, tokenizer: ChatTokenizer, prompts: ChatPrompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts

    def tokenize(self, text: str | Sequence[ChatMessage], *, tenant: str = "") -> tuple[int, ...]:
        """Token ids of a text as it stands, or of the prompt of a chat of these messages. Raises InvalidRequest."""
        if isinstance(text, str):
            return self._tokenizer.encode(text)
        return self._prompts.write(ChatRequest(messages=tuple(text)), owner_of(tenant, "")).token_ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out. Raises InvalidRequest for ids that are none."""
        most = self._tokenizer.num_tokens
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < most), None)
        if wrong is not None:
            raise InvalidRequest(f"{wrong} is no token id: give ids of 0..{most - 1}", param="tokens")
        return self._tokenizer.decode(token_ids)

    def names(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them."""
        return self._tokenizer.names(token_ids)
