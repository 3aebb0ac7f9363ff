"""What `/v1/embeddings` answers; built in `agentkv.server.embeddings.body`."""

from typing import Literal

from agentkv.server.answers import Answer


class EmbeddingAnswer(Answer):
    """One text's vector: numbers, or base64 of 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Answer):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """A vector for each text."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingAnswer]
    usage: EmbeddingsUsage
