"""Greedy chat with an exported model, through `transformers` alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from agentkv_evals.worlds.build import make_item
from agentkv_evals.worlds.demo import DemoAgent, DemoCase
from agentkv_evals.worlds.item import Message


def as_dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as `apply_chat_template` takes them."""
    return [{"role": m.role, "content": m.content, **({"name": m.name} if m.name else {})} for m in messages]


class Speaker:
    """A model and its tokenizer; `say` continues a thread greedily."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    def ids(self, messages: Iterable[Message], generation_prompt: bool = True) -> list[int]:
        """The thread's token ids."""
        text = self.tokenizer.apply_chat_template(
            as_dicts(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
        return self.tokenizer(str(text), add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def say(self, messages: Iterable[Message], most: int = 600) -> str:
        """The reply to a thread, at most `most` tokens."""
        ids = torch.tensor([self.ids(messages)])
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def run_demo(speaker: Speaker, case: DemoCase, role: str = "user") -> list[tuple[DemoAgent, str]]:
    """The demo's agents in turn, reading what the others really wrote; returns each agent and its reply."""
    said = [(agent, speaker.say([_system(agent), _task(agent)])) for agent in case.researchers]
    for agent in (case.critic, case.analyst, case.writer):
        heard = [pair for pair in said if pair[0] in case.researchers or (agent, pair[0]) == (case.writer, case.critic)]
        thread = [Message(role=role, name=other.name, content=text) for other, text in heard]
        said.append((agent, speaker.say([_system(agent), *thread, _task(agent)])))
    return said


def _system(agent: DemoAgent) -> Message:
    return Message(role="system", content=agent.system)


def _task(agent: DemoAgent) -> Message:
    return Message(role="user", content=agent.task)


def run_judge(speaker: Speaker, seed: int) -> list[tuple[DemoAgent, str]]:
    """A judge on a held-out thread: the judge (its task shows the candidates) and its reply."""
    item = make_item(family="judge", depth=2, seed=seed)
    candidates = [turn.content for turn in item.turns if turn.author.startswith("solver")]
    shown = DemoAgent(
        name="judge",
        system=item.reader_system,
        task="\n".join([*candidates, item.instruction or ""]),
        expected=item.answer,
    )
    return [(shown, speaker.say(item.reader_messages()))]
