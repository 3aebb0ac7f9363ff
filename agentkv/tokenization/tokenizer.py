"""`ChatTokenizer`: the tokenizer and chat template of a Hugging Face directory, as one thing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from agentkv.api import ChatMessage
from agentkv.errors import InvalidRequest, ModelError, TemplateRefused
from agentkv.tokenization.assemble import Layout, assemble, lay_out
from agentkv.tokenization.fences import Fences
from agentkv.tokenization.generated import locate_generated
from agentkv.tokenization.pieces import PieceCache
from agentkv.tokenization.prompt import GeneratedText, Prompt, PromptMessage, Splicer
from agentkv.tokenization.template import NOTHING, ChatTemplate, read_json, special_token_names
from agentkv.tokenization.template_files import read_template
from agentkv.tokenization.token_bytes import Detokenizer, TokenBytes
from agentkv.tokenization.tokenizer_files import read_tokenizer
from agentkv.tokenization.turns import render_in_turns

_PROBE_CONTENTS = (
    "plain words",
    " leading",
    "trailing ",
    "\n\nlines\n\n",
    "12345",
    "中文，字",
    "🙂 e\u0301",
    "a\tb",
    "!?",
    "",
)


class ChatTokenizer:
    """Renders and tokenises chats, and turns tokens back into text. Thread-safe.

    Where the template's special tokens fence the messages, so that the parts between them tokenise like the whole (a
    probe at construction compares the two), the parts' token ids are remembered by their text; otherwise every prompt
    is tokenised as a whole. Special-token text inside a message is plain text either way; in the second case, a prompt
    that holds such text is the only one that is cut at the template's special tokens.

    Args:
        tokenizer: as loaded from tokenizer.json; owned by this object from now on.
        template: the chat template.
        eos_token_ids: tokens that end a reply, beside the template's end of turn.
        max_cached_tokens: most tokens remembered by their text.

    Attributes:
        template: the chat template.
        is_fenced: whether messages' token ids are remembered one by one.
        end_of_turn_id: the special token that the template puts behind an assistant's words, None without one.
        stop_token_ids: all tokens that end a reply, that one among them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        eos_token_ids: Iterable[int] = (),
        max_cached_tokens: int = 1 << 20,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._fences = Fences({token.content: i for i, token in added.items() if token.special})
        self._token_bytes = TokenBytes(tokenizer)
        self.template = template
        layouts = self._probe_layouts()
        tokenizer.encode_special_tokens = (
            False  # for the whole renderings, as tokenizers read them unless told otherwise
        )
        wholes = [tuple(tokenizer.encode(each.text, add_special_tokens=False).ids) for each in layouts]
        tokenizer.encode_special_tokens = True  # special-token text is plain text, unless the template wrote it
        self._tokenizer = tokenizer
        self._pieces = PieceCache(tokenizer, self._token_bytes, max_tokens=max_cached_tokens)
        parts = [self._assemble(each, _probe(rank)).token_ids for rank, each in enumerate(layouts)]
        self.is_fenced = parts == wholes and all(len(each.fences) >= len(each.contents) for each in layouts)
        self._whole = None if self.is_fenced else PieceCache(_copy(tokenizer), self._token_bytes, max_tokens=0)
        self.end_of_turn_id = self._find_end_of_turn()
        turn = () if self.end_of_turn_id is None else (self.end_of_turn_id,)
        self.stop_token_ids = frozenset((*eos_token_ids, *turn))

    @classmethod
    def from_directory(cls, path: str | Path) -> "ChatTokenizer":
        """Read the tokenizer, the chat template and the end tokens of a Hugging Face directory.

        Raises `ModelError`, naming what is missing or unsupported.
        """
        path = Path(path)
        file = path / "tokenizer_config.json"
        config = read_json(file) if file.is_file() else {}
        tokenizer = read_tokenizer(path, config)
        template = ChatTemplate(read_template(path, config), special_token_names(config))
        return cls(tokenizer, template, eos_token_ids=_eos_token_ids(path, tokenizer))

    @property
    def as_json(self) -> str:
        """The contents of tokenizer.json."""
        return self._tokenizer.to_str()

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain text: no token is added, and special-token text in it is text like any other."""
        _check_unicode(text)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special ones left out, with replacement characters for what is no UTF-8."""
        stream = self.detokenizer()
        return stream.feed(token_ids) + stream.finish()

    def names(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them (`Ġword`, `▁word`); empty for ids that name none."""
        return tuple(self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids)

    def detokenizer(self) -> Detokenizer:
        """A fresh stream from token ids to text."""
        return Detokenizer(self._token_bytes)

    def prompt(
        self,
        messages: Sequence[ChatMessage],
        *,
        variables: Mapping[str, Any] = NOTHING,
        tenant: str = "",
        splicer: Splicer | None = None,
    ) -> Prompt:
        """Render the messages, ask for a reply, and tokenise.

        Args:
            messages: the chat.
            variables: what the template reads beside them: `tools`, and options of its own; JSON data.
            tenant: whose; token ids are remembered per tenant.
            splicer: knows generated texts; their tokens are put in as they were generated.

        Raises `TemplateRefused` with the template's own words, and `InvalidRequest` for text that is no Unicode.
        """
        for index, message in enumerate(messages):
            _check_unicode(message.content + message.role + (message.name or "") + message.reasoning, index)
        layout = self._lay_out(messages, variables, cut=self.is_fenced)
        return self._assemble(layout, messages, tenant, splicer)

    def raw_prompt(self, prompt: str | Sequence[int]) -> Prompt:
        """The prompt of a text that is continued as it is, or of its tokens; the tokenizer adds what it adds by itself.

        A text is recognised like one message; special-token text in it is special tokens, since the caller writes the
        template. Raises `InvalidRequest` for text that is no Unicode.
        """
        if not isinstance(prompt, str):
            return Prompt(token_ids=tuple(prompt), messages=())
        _check_unicode(prompt)
        encoding = self._reads_special.encode(prompt, add_special_tokens=True)
        piece = self._pieces.piece(prompt, encoding)
        first = int(np.argmax(piece.ends > 0)) if piece.token_ids.size else 0
        whole = PromptMessage(
            index=0,
            role="user",
            name=None,
            text=prompt,
            start=first,
            end=len(encoding.ids),
            starts=piece.starts[first:],
            ends=piece.ends[first:],
        )
        return Prompt(token_ids=tuple(encoding.ids), messages=(whole,), tail=prompt[-64:])

    @cached_property
    def _reads_special(self) -> Tokenizer:
        return _copy(self._tokenizer)

    def generated(self, text: str, token_ids: Sequence[int]) -> GeneratedText | None:
        """Which generated ids stand behind a returned text, or None when the text is not what they say.

        Args:
            text: what the client received: what the ids say, less what the server cut at either end.
            token_ids: all ids as emitted, end tokens included.
        """
        return locate_generated(text, token_ids, self._token_bytes, self.encode)

    def _lay_out(self, messages: Sequence[ChatMessage], variables: Mapping[str, Any] = NOTHING, *, cut: bool) -> Layout:
        beside = json.dumps(dict(variables), ensure_ascii=False) if variables else ""
        escaped, escape = self._fences.escape(messages, beside)
        if variables and escape.texts:
            variables = json.loads(escape.hide(beside))
        rendered = render_in_turns(escaped, lambda turns: self.template.render_located(turns, variables))
        return lay_out(rendered, escape, self._fences if cut or escape.texts else None)

    def _assemble(
        self, layout: Layout, messages: Sequence[ChatMessage], tenant: str = "", splicer: Splicer | None = None
    ) -> Prompt:
        splices = None
        # SentencePiece puts a space in front of every part: parts around a splice would change the text.
        if splicer is not None and not self._token_bytes.strips_first_space:
            splices = splicer([layout.text[start:end] for start, end in layout.contents])
        pieces = self._pieces if layout.is_cut or self._whole is None else self._whole
        return assemble(layout, messages, splices, lambda texts: pieces.encode(texts, tenant))

    def _probe_layouts(self) -> list[Layout]:
        try:
            rotations = range(len(_PROBE_CONTENTS))
            return [self._lay_out(_probe(first), cut=True) for first in rotations]
        except TemplateRefused as error:
            raise ModelError(f"the chat template can't write a simple conversation: {error}") from error

    def _find_end_of_turn(self) -> int | None:
        """The special token that the template puts behind an assistant's words, if it does."""
        messages = (ChatMessage(role="user", content="question"), ChatMessage(role="assistant", content="the reply"))
        text = self.template.render(messages, add_generation_prompt=False)
        plain, *rest = self._fences.split(text[text.rfind("the reply") + len("the reply") :])
        return self._fences.ids[rest[0]] if rest and not plain.strip() else None


def _probe(first: int) -> list[ChatMessage]:
    contents = [_PROBE_CONTENTS[(first + k) % len(_PROBE_CONTENTS)] for k in range(3)]
    roles = ("user", "assistant", "user")
    return [ChatMessage(role=role, content=content) for role, content in zip(roles, contents, strict=True)]


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads special-token text as special tokens, as tokenizers do unless told otherwise."""
    return Tokenizer.from_str(tokenizer.to_str())


def _eos_token_ids(path: Path, tokenizer: Tokenizer) -> set[int]:
    ids: set[int] = set()
    if (path / "generation_config.json").is_file():
        entry = read_json(path / "generation_config.json").get("eos_token_id")
        ids.update(entry if isinstance(entry, list) else [] if entry is None else [entry])
    if (path / "tokenizer_config.json").is_file():
        eos = special_token_names(read_json(path / "tokenizer_config.json")).get("eos_token")
        eos_id = tokenizer.token_to_id(eos) if eos is not None else None
        ids.update([] if eos_id is None else [eos_id])
    return ids


def _check_unicode(text: str, index: int | None = None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"messages[{index}]" if index is not None else "the text"
        raise InvalidRequest(
            f"{place} holds {text[error.start]!r}, half of a surrogate pair, which is no character: send valid Unicode",
            param="messages",
            code="invalid_unicode",
        ) from error
