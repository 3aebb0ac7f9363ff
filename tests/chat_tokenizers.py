"""Small real tokenizers with the templates of real models, and what the tests ask of them."""

import itertools
import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from agentkv.api import ChatMessage
from agentkv.tokenization import ChatTemplate, ChatTokenizer, Prompt, PromptMessage
from agentkv_engine.reuse import Resident

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} name={{ m.name }}{% endif %}{{ '\\n' }}"
    "{{ m.content }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ '\\n\\n' }}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% endfor %}"
)
SPECIAL = {
    CHATML: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    LLAMA3: ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    PLAIN: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    STRICT: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}
SPLIT = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        ["", " ", "\n", "user", "assistant\n", "🙂👩‍🚀", "e\u0301", "中文，你好", "a  b\n\n c ", "12345 678"]
    ),
    st.lists(
        st.sampled_from(["the statement ", "is\n", "🙂", "é", "中", " 42", "<", "|im_end|>", "x"]), max_size=20
    ).map("".join),
)

PARAGRAPH = (
    "The assignment statement evaluates the expression list and assigns the single resulting object to each of the "
    "target lists, from left to right. Assignment is defined recursively depending on the form of the target list."
)
CHINESE = (
    "赋值语句会对指定的表达式列表进行求值，并将单一结果对象从左至右逐个赋值给目标列表。"
    "赋值是根据目标列表的格式递归地定义的。"
)


def train(template: str, *, size: int = 2000) -> Tokenizer:
    """A byte-level BPE as Qwen's (with its NFC normaliser) or Llama 3's, trained on Python's documentation."""
    tokenizer = Tokenizer(models.BPE())
    if template == LLAMA3:
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL[template]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(pydoc_data.topics.topics.values())[:30], trainer)
    return tokenizer


def chat_tokenizer(template: str) -> ChatTokenizer:
    """The tokenizer of a template in memory."""
    bos = {"bos_token": "<|begin_of_text|>"} if template == LLAMA3 else {}
    return ChatTokenizer(train(template), ChatTemplate(template, bos))


def write_directory(path: Path, template: str, **config: object) -> Path:
    """A Hugging Face directory with a tokenizer and its template."""
    train(template).save(str(path / "tokenizer.json"))
    bos = {"bos_token": "<|begin_of_text|>"} if template == LLAMA3 else {}
    entries = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **bos, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(entries), encoding="utf-8")
    return path


def chat(*contents: str, roles: Sequence[str] = ("user",)) -> list[ChatMessage]:
    """Messages with these contents; the roles are taken in turn."""
    return [ChatMessage(role=r, content=c) for c, r in zip(contents, itertools.cycle(roles), strict=False)]


_handles = itertools.count(1)


def resident_of(prompt: Prompt, message: PromptMessage, *, exact: bool = False, hops: int = 1) -> Resident:
    """KV of a message, as the engine would hand it out."""
    return resident(prompt.token_ids[message.start : message.end], exact=exact, hops=hops)


def resident(token_ids: Sequence[int], *, exact: bool = False, hops: int = 1) -> Resident:
    """KV of some tokens under a fresh handle."""
    return Resident(handle=next(_handles), token_ids=tuple(token_ids), exact=exact, hops=0 if exact else hops)
