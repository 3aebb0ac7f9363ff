"""The same weights twice: in the engine, and in transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agentkv.embedded import model_directory
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams

LLAMAS: dict[str, dict[str, Any]] = {
    "llama-25m": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
    },
    "llama-500m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}


@dataclass(slots=True, kw_only=True)
class ModelPair:
    """One model in both engines, float32 on CPU. Greedy, with no stop tokens: both arms do the same work."""

    engine: Engine
    reference: Any
    num_runs: int = 0

    def ours(self, prompts: list[list[int]], lengths: list[int]) -> list[tuple[int, ...]]:
        """Continue all prompts by so many tokens; they arrive at once, and read no kept KV."""
        self.num_runs += 1
        answers: dict[str, tuple[int, ...]] = {}
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            request_id = f"{self.num_runs}-{number}"
            answers[request_id] = ()
            self.engine.add(
                Request(
                    request_id=request_id,
                    token_ids=tuple(prompt),
                    sampling=SamplingParams(max_tokens=length),
                    mode=ReuseMode.OFF,
                )
            )
        while self.engine.has_work:
            for output in self.engine.step():
                answers[output.request_id] += output.token_ids
        return list(answers.values())

    @torch.inference_mode()
    def theirs(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        """`generate` for a batch, padded on the left, until its longest reply is done."""
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        output = self.reference.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=0,
        )
        return output[:, longest:].tolist()


@contextmanager
def model_pair(shape: str, *, max_sequences: int, seed: int) -> Iterator[ModelPair]:
    """The pair of a shape: `embedded`, or random weights of one of `LLAMAS`."""
    with TemporaryDirectory() as folder:
        directory = model_directory() if shape == "embedded" else _write_random(Path(folder), shape, seed)
        config = EngineConfig(kv_memory=1 << 30, max_sequences=max_sequences)
        engine = Engine.from_directory(directory, config)
        reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        reference.generation_config.eos_token_id = None
        yield ModelPair(engine=engine, reference=reference)


def _write_random(directory: Path, shape: str, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, **LLAMAS[shape])
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
