"""What bfloat16 and weights of 8 bits cost and bring, against float32 on the same prompts.

    python -m agentkv_evals.precision --model DIR --items 24 --out precision.json

Float32 replies greedily; the other arms get that reply forced: at every token of it, have they the same best token, and
how far are their distributions (KL)? Prefill and decode are timed in turns, arm after arm; the fastest round of each is
given, so that other programs disturb as little as may be.
"""

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from agentkv.api import ChatMessage
from agentkv.hub import find_model
from agentkv.tokenization import ChatTokenizer
from agentkv_engine.config import EngineConfig
from agentkv_engine.engine import Engine
from agentkv_engine.request import Request, ReuseMode, SamplingParams
from agentkv_evals.comparison.fidelity import Fidelity, compare
from agentkv_evals.worlds.build import make_item

FAMILIES = ("chain", "update", "swap", "contradiction")
FIRST_SEED = 300_000
KV_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """In which numbers a model runs."""

    name: str
    dtype: torch.dtype
    quantization: Literal["int8"] | None = None

    def engine(self, model: Path) -> Engine:
        """The model in these numbers."""
        return Engine.from_directory(
            model, EngineConfig(kv_memory=KV_MEMORY, dtype=self.dtype, quantization=self.quantization)
        )


ARMS = (
    Arm(name="float32", dtype=torch.float32),
    Arm(name="bfloat16", dtype=torch.bfloat16),
    Arm(name="int8, bfloat16", dtype=torch.bfloat16, quantization="int8"),
    Arm(name="int8, float32", dtype=torch.float32, quantization="int8"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Tokens a second of one chat."""

    prefill: float
    decode: float


def compare_arms(engines: dict[str, Engine], prompts: list[tuple[int, ...]], num_tokens: int) -> dict[str, Fidelity]:
    """How far each arm is from the first at the tokens of the first one's greedy replies."""
    reference, *others = engines
    found = dict.fromkeys(others, Fidelity())
    for prompt in prompts:
        reply, logits, _ = answer(engines[reference], prompt, num_tokens)
        for name in others:
            found[name] += compare(logits, answer(engines[name], prompt, num_tokens, forced=reply)[1])
    return found


def time_arms(engines: dict[str, Engine], prompt: tuple[int, ...], num_tokens: int, rounds: int) -> dict[str, Rates]:
    """The fastest round of each arm."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            _, _, times = answer(engine, prompt, num_tokens)
            seen[name].append((times[0], times[-1] - times[0]))
    prefill = {name: min(first for first, _ in rounds_[1:]) for name, rounds_ in seen.items()}
    decode = {name: min(rest for _, rest in rounds_[1:]) for name, rounds_ in seen.items()}
    return {
        name: Rates(prefill=len(prompt) / prefill[name], decode=(num_tokens - 1) / decode[name]) for name in engines
    }


def answer(
    engine: Engine, prompt: tuple[int, ...], num_tokens: int, *, forced: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], list[torch.Tensor], list[float]]:
    """A greedy or forced reply, its logits, and when each output came, in seconds."""
    request = Request(
        request_id="one",
        token_ids=prompt,
        sampling=SamplingParams(max_tokens=num_tokens),
        mode=ReuseMode.OFF,
        forced_output=forced,
        return_logits=True,
    )
    engine.add(request)
    token_ids: tuple[int, ...] = ()
    logits, times, started = [], [], time.perf_counter()
    while engine.has_work:
        for output in engine.step():
            token_ids += output.token_ids
            if output.logits is not None:
                logits.append(output.logits)
            if output.token_ids:
                times.append(time.perf_counter() - started)
    engine.release_finished()
    return token_ids, logits, times


def held_out_prompts(tokenizer: ChatTokenizer, num_items: int) -> list[tuple[int, ...]]:
    """Items that the repository's model was not trained on, as their readers are asked."""
    items = (make_item(family=FAMILIES[n % len(FAMILIES)], depth=2, seed=FIRST_SEED + n) for n in range(num_items))
    chats = ([ChatMessage(role=m.role, content=m.content, name=m.name) for m in i.reader_messages()] for i in items)
    return [tokenizer.prompt(chat).token_ids for chat in chats]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="Hugging Face directory, or id on the Hub (default: the repository's)")
    parser.add_argument("--items", type=int, default=24, help="prompts compared")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--prefill", type=int, default=1024, help="tokens of the prompt that is timed")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each arm")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    model = find_model(options.model)
    prompts = held_out_prompts(ChatTokenizer.from_directory(model), options.items)
    engines = {arm.name: arm.engine(model) for arm in ARMS}
    fidelity = compare_arms(engines, prompts, options.tokens)
    long_prompt = tuple(itertools.islice(itertools.cycle(itertools.chain(*prompts)), options.prefill))
    rates = time_arms(engines, long_prompt, options.tokens, options.rounds)
    figures = {
        name: {"prefill tokens/s": round(rate.prefill), "decode tokens/s": round(rate.decode, 1)}
        for name, rate in rates.items()
    }
    for name, each in fidelity.items():
        figures[name] |= {"same best token": round(each.agreement, 5), "mean KL": each.mean_kl}
    text = json.dumps({"model": model.name, "positions": next(iter(fidelity.values())).positions, "arms": figures})
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
