"""The body of `/v1/embeddings`, and the answer."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from agentkv.api import Embedding
from agentkv.server.errors import ApiError

Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]


class EmbeddingsBody(BaseModel):
    """OpenAI's request: a text, several, the tokens of one, or those of several."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def inputs(self, most: int) -> list[str | list[int]]:
        """What is to be embedded, one by one.

        Raises:
            ApiError: 400, too many.
        """
        given: Any = self.input
        inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        if len(inputs) > most:
            raise ApiError(400, f"input has {len(inputs)} texts, and at most {most} are taken", param="input")
        return inputs

    def answer(self, embeddings: Sequence[Embedding]) -> dict[str, Any]:
        """OpenAI's list of embeddings.

        Raises:
            ApiError: 400, more dimensions than there are.
        """
        num_tokens = sum(embedding.num_tokens for embedding in embeddings)
        return {
            "object": "list",
            "model": self.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._shown(embedding)}
                for index, embedding in enumerate(embeddings)
            ],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    def _shown(self, embedding: Embedding) -> list[float] | str:
        vector = embedding.vector
        if self.dimensions is not None:
            if self.dimensions > len(vector):
                message = f"dimensions is {self.dimensions}, and this model's vectors have {len(vector)}"
                raise ApiError(400, message, param="dimensions")
            vector = vector[: self.dimensions]
            vector = vector / (np.linalg.norm(vector) or 1.0)
        if self.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        return vector.tolist()
