"""What the server asks of the service in its own process, beyond chats."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from agentkv.api import ChatMessage, ChatRequest, ChatService, Embedding
from agentkv.segment_api import SegmentManager


class EmbeddingService(Protocol):
    """Texts to vectors; see `agentkv.embedder.Embedder`."""

    def submit(self, inputs: Sequence[str | Sequence[int]], *, tenant: str = "") -> list[Future[Embedding]]:
        """Start; cancelling a future aborts its work. Raises InvalidRequest, ServiceClosed."""
        ...


class TextService(Protocol):
    """Texts to tokens and back; see `agentkv.texts.Texts`."""

    def tokenize(self, text: str | Sequence[ChatMessage], *, tenant: str = "") -> tuple[int, ...]:
        """Token ids of a text, or of a chat's prompt. Raises InvalidRequest."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of tokens. Raises InvalidRequest."""
        ...

    def names(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them."""
        ...


class HostedService(ChatService, Protocol):
    """A `ChatService` that runs in this process and knows how it does."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and reply together."""
        ...

    @property
    def segments(self) -> SegmentManager:
        """What is kept."""
        ...

    @property
    def embedder(self) -> EmbeddingService:
        """Texts to vectors."""
        ...

    @property
    def texts(self) -> TextService:
        """Texts to tokens and back."""
        ...

    def count_tokens(self, request: ChatRequest, *, tenant: str = "") -> int:
        """Tokens of a chat's prompt. Raises InvalidRequest and its kin."""
        ...

    def health(self) -> dict[str, Any]:
        """How it does: `status` is `ok` while chats can run. Does not wait."""
        ...

    def kv_bytes(self) -> dict[str, int]:
        """Bytes of KV that is kept, by tier; may wait for the step under way. Raises ServiceClosed."""
        ...
