"""Templates that demand alternating roles or know no system role: chats are written in turns, messages stay found."""

import pytest

from agentkv.api import ChatMessage, ToolCall
from agentkv.errors import TemplateRefused
from agentkv.tokenization import ChatTemplate, ChatTokenizer
from chat_tokenizers import CHATML, chat, train

# Mistral 7B v0.1 has this one, with other special tokens.
MISTRAL = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] | trim + '<|im_end|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|endoftext|>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Llama 2's takes one system message, and puts it into the first user's turn.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set said = '<<SYS>>' + system + '<</SYS>>' + m['content'] if loop.index0 == 0 and system else m['content'] %}"
    "{{ '<|im_start|>' + said | trim + '<|im_end|>' if m['role'] == 'user' else m['content'] + '<|endoftext|>' }}"
    "{% endfor %}"
)


@pytest.fixture(scope="module", params=[MISTRAL, LLAMA2], ids=["mistral", "llama2"])
def strict(request: pytest.FixtureRequest) -> ChatTokenizer:
    return ChatTokenizer(train(CHATML), ChatTemplate(request.param, {}))


def texts(tokenizer: ChatTokenizer, messages: list[ChatMessage]) -> list[str]:
    """What the tokens of each message say."""
    prompt = tokenizer.prompt(messages)
    return [tokenizer.decode(prompt.token_ids[m.start : m.end]) for m in prompt.messages]


def test_messages_of_one_role_in_a_row_are_one_turn_and_each_is_found(strict: ChatTokenizer) -> None:
    messages = chat("the tide rose 17 cm", "ships: 2,306", "no errors", "so?", roles=("user",))
    messages.insert(3, ChatMessage(role="assistant", content="agreed"))
    prompt = strict.prompt(messages)
    turn = "the tide rose 17 cm\n\nships: 2,306\n\nno errors"
    expected = strict.prompt(chat(turn, "agreed", "so?", roles=("user", "assistant")))
    assert prompt.token_ids == expected.token_ids
    assert [m.text for m in prompt.messages] == [m.content for m in messages]
    assert all(m.located for m in prompt.messages)
    for message, said in zip(messages, texts(strict, messages), strict=True):
        assert said
        assert said in message.content
    assert [m.role for m in prompt.messages] == ["user", "user", "user", "assistant", "user"]


def test_what_the_template_trims_from_a_turn_is_trimmed_from_its_messages(strict: ChatTokenizer) -> None:
    found = strict.prompt(chat("  first words ", "", " last words\n")).messages
    assert [m.text for m in found] == ["first words ", "", " last words"]
    assert [m.located for m in found] == [True, True, True]
    assert found[1].num_tokens == 0


def test_a_system_message_goes_where_the_template_lets_it() -> None:
    messages = [ChatMessage(role="system", content="You are the critic."), *chat("report one", "report two")]
    mistral = ChatTokenizer(train(CHATML), ChatTemplate(MISTRAL, {}))
    llama2 = ChatTokenizer(train(CHATML), ChatTemplate(LLAMA2, {}))
    for tokenizer, begin in ((mistral, "<|im_start|>You are the critic.\n\n"), (llama2, "<|im_start|><<SYS>>You are")):
        prompt = tokenizer.prompt(messages)
        assert [m.text for m in prompt.messages] == [m.content for m in messages]
        assert tokenizer._tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False).startswith(begin)
        assert texts(tokenizer, messages)[1] in ("report one", "one")


def test_what_can_not_be_put_into_turns_is_refused_with_the_template_s_words(strict: ChatTokenizer) -> None:
    with pytest.raises(TemplateRefused, match="Conversation roles must alternate user/assistant"):
        strict.prompt(chat("I begin", "and you?", roles=("assistant", "user")))
    call = ToolCall(call_id="1", name="look", arguments="{}")
    calls = [ChatMessage(role="assistant", content="", tool_calls=(call,)) for _ in range(2)]
    with pytest.raises(TemplateRefused, match="must alternate"):  # calls are not words: they are not put together
        strict.prompt([*chat("look"), *calls])


def test_a_template_that_takes_everything_gets_it_as_it_is(chatml: ChatTokenizer) -> None:
    prompt = chatml.prompt(chat("a", "b"))
    assert chatml._tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False).count("<|im_start|>user") == 2
