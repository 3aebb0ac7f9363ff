"""Tokenizers for the tests of tokens and segments, trained once a session."""

import pytest

from agentkv.tokenization import ChatTokenizer
from chat_tokenizers import CHATML, LLAMA3, PLAIN, chat_tokenizer


@pytest.fixture(scope="session")
def chatml() -> ChatTokenizer:
    return chat_tokenizer(CHATML)


@pytest.fixture(scope="session")
def llama3() -> ChatTokenizer:
    return chat_tokenizer(LLAMA3)


@pytest.fixture(scope="session")
def unfenced() -> ChatTokenizer:
    return chat_tokenizer(PLAIN)


@pytest.fixture(scope="session", params=["chatml", "llama3", "unfenced"])
def tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    """Each of the three."""
    return request.getfixturevalue(request.param)
