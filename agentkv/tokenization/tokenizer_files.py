"""The tokenizer of a model directory: tokenizer.json, or what `transformers` converts to it, with its added tokens."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from agentkv.errors import ModelError

SENTENCEPIECE_MODEL = "tokenizer.model"
_OTHER_FILES = (SENTENCEPIECE_MODEL, "vocab.json")
_PROBES = ("Hello, world! 12 of 345", "naïve 日本語 🙂", "two  spaces\nand lines", "ﬁne ½ x²")


def read_tokenizer(path: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a directory.

    Args:
        path: the directory.
        config: its tokenizer_config.json.

    Raises:
        ModelError: there is none, or it can't be read or converted; says what is missing.
    """
    file = path / "tokenizer.json"
    if file.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"{file} can't be read: {error}; download the model directory again") from error
    elif any((path / name).is_file() for name in _OTHER_FILES):
        tokenizer = _converted(path)
    else:
        raise ModelError(
            f"{path} has no tokenizer.json: give a Hugging Face model directory with a tokenizer (tokenizer.json, "
            "tokenizer.model) and a chat template"
        )
    _add_tokens(tokenizer, config, path)
    return tokenizer


def _converted(path: Path) -> Tokenizer:
    """What transformers makes of the files of a slow tokenizer."""
    model = path / SENTENCEPIECE_MODEL
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if missing and model.is_file():
        raise ModelError(
            f"{path} has a SentencePiece tokenizer (tokenizer.model) and no tokenizer.json; to convert it, "
            f"{' and '.join(missing)} must be there: pip install 'agentkv[sentencepiece]'"
        )
    # transformers takes a second to import, and only directories without tokenizer.json need it.
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True).backend_tokenizer
    except Exception as error:  # whatever a conversion raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path} has no tokenizer.json, and transformers can't convert its tokenizer: {reason}"
        ) from error
    if model.is_file():
        _check_conversion(tokenizer, model)
    return tokenizer


def _check_conversion(tokenizer: Tokenizer, model: Path) -> None:
    """That the converted tokenizer gives what SentencePiece itself gives: classes ignore what their own models lack."""
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 (an extra)

    original = SentencePieceProcessor(model_file=str(model))
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != original.encode(text):
            raise ModelError(
                f"{model} can't be converted: the converted tokenizer reads {text!r} otherwise than SentencePiece "
                "does; use a version of the model with tokenizer.json"
            )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _add_tokens(tokenizer: Tokenizer, config: dict[str, Any], path: Path) -> None:
    """Add what tokenizer_config.json has beyond tokenizer.json: tokens, and that a token is special."""
    known = tokenizer.get_added_tokens_decoder()
    wanted = sorted((int(i), entry) for i, entry in (config.get("added_tokens_decoder") or {}).items())
    for token_id, entry in wanted:
        special = bool(entry.get("special"))
        if token_id in known and known[token_id].special >= special:
            continue
        flags = {key: bool(entry.get(key)) for key in ("single_word", "lstrip", "rstrip", "normalized")}
        token = AddedToken(entry["content"], special=special, **flags)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(entry["content"])
        if found != token_id:
            raise ModelError(
                f"{path}: tokenizer_config.json gives {entry['content']!r} the id {token_id}, and the tokenizer "
                f"{found}: the files are not of the same model"
            )
