"""Writes the repository's random-weights model: a real Hugging Face directory whose words mean nothing.

    python -m agentkv_evals.random_model --out DIR --seed 0

It stands in wherever a model's arithmetic matters and its answers do not: tests, the demo before a trained model is
there. Matrices are drawn wide enough for attention to pick out keys, so that wrong positions, masks or stale KV show in
the logits; at the usual standard deviation of 0.02 attention is nearly uniform and hides them all.

The pieces (`train_tokenizer`, `draw_weights`, `write_tokenizer`) also write the tests' small models.
"""

import argparse
import ast
import json
import pydoc_data.topics
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

STD = 0.14
VOCABULARY_SIZE = 4096
CONTEXT_LENGTH = 8192

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# The first line end is an expression, because transformers renders with trim_blocks, which eats one behind a block.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}{% if m.get('name') %} name={{ m['name'] }}{% endif %}"
    "{{ '\\n' }}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen2's pre-tokenizer: words with the space before them, single digits, runs of punctuation, line ends. It and NFC are
# what transformers' own class for Qwen2 uses, whatever tokenizer.json says: so every loader gives the same ids.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MODEL_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# agentkv's random-weights model

**It is not trained: what it writes has no meaning.** Its matrices are random numbers (seed {seed}, standard deviation
{std}), drawn wide enough for attention to pick out single keys, so that an engine that reads a wrong key, position or
mask gives other logits. It serves for tests, and for the demo, which forces authored replies through it and says so.

| | |
|---|---|
| architecture | Qwen2: {layers} layers, width {width}, MLP {mlp} |
| attention | {heads} heads x {head_dim}, {kv_heads} of keys and values |
| parameters | {parameters:,} (bfloat16, tied embeddings) |
| context | {context} tokens |
| tokenizer | byte-level BPE, {vocabulary} entries, every byte, single digits; trained on Python's documentation |
| template | ChatML, with ` name=AGENT` behind the role where a message has a name |

Made by `python -m agentkv_evals.random_model --out DIR --seed {seed}`. The same seed and the same Python, torch and
tokenizers versions write the same bytes (the tokenizer's text is the documentation of the Python that runs the script).
`config.json` says `"agentkv_trained": false`.
"""


def standard_prose() -> Iterator[str]:
    """English prose that ships with Python: the language reference's topics, then the standard library's docstrings."""
    yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from filter(None, map(_docstring, ast.walk(tree)))


def _docstring(node: ast.AST) -> str | None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.get_docstring(node) if isinstance(node, documented) else None


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `vocabulary_size` entries at most: every (composed) text round-trips, digits stay single.

    Special tokens take the first ids, in the order given.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@torch.no_grad()
def draw_weights(model: PreTrainedModel, *, seed: int, std: float = STD) -> None:
    """Draw every weight anew: matrices and biases N(0, std), norm weights N(1, std); the same each time."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name else 0.0
        parameter.copy_(torch.empty(parameter.shape).normal_(mean, std, generator=generator))


def write_tokenizer(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    chat_template: str,
    end_of_text: str,
    end_of_turn: str,
    context_length: int,
    start_of_text: str | None = None,
) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template) as checkpoints on the Hub have them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start_of_text,
        "eos_token": end_of_turn,
        "pad_token": end_of_text,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "chat_template": chat_template,
    }
    write_json(directory / "tokenizer_config.json", config)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write an object as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(tokenizer: Tokenizer) -> Qwen2Config:
    """The shape of the repository's random-weights model."""
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    config.update({"agentkv_trained": False})
    return config


def model_card(model: Qwen2ForCausalLM, seed: int) -> str:
    """The text of the model's README.md."""
    config = model.config
    return MODEL_CARD.format(
        seed=seed,
        std=STD,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        mlp=config.intermediate_size,
        parameters=model.num_parameters(),
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
    )


def write_random_model(directory: Path, *, seed: int = 0) -> None:
    """Write the repository's random-weights model: weights in bfloat16, configuration, tokenizer, model card."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(standard_prose(), VOCABULARY_SIZE, (END_OF_TEXT, START_OF_TURN, END_OF_TURN))
    model = Qwen2ForCausalLM(model_config(tokenizer))
    draw_weights(model, seed=seed)
    ends = [tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[-1])
    model.bfloat16().save_pretrained(directory)
    write_tokenizer(
        directory,
        tokenizer,
        chat_template=CHATML,
        end_of_text=END_OF_TEXT,
        end_of_turn=END_OF_TURN,
        context_length=CONTEXT_LENGTH,
    )
    (directory / "README.md").write_text(model_card(model, seed), encoding="utf-8")


def main() -> None:
    """Command line: where to write, and the seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    arguments = parser.parse_args()
    write_random_model(arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
