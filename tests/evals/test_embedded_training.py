"""Tokenizer, encoder, training definition, export and careless reuse: small models, seconds."""

import json
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from agentkv.embedded import is_trained, model_directory
from agentkv_evals.training import checkpoint
from agentkv_evals.training.cell import Cell
from agentkv_evals.training.cell_file import OtherSettings
from agentkv_evals.training.construct import construct
from agentkv_evals.training.encode import CONTEXT, DECISIVE, END_ID, IGNORED, Encoder, pack
from agentkv_evals.training.evaluate import Wanted, evaluate, tables
from agentkv_evals.training.export import write
from agentkv_evals.training.feed import make_shard
from agentkv_evals.training.loop import at
from agentkv_evals.training.model import Decoder, Shape, rope_tables, rotate
from agentkv_evals.training.plan import PLANS
from agentkv_evals.training.reuse import Careless, pieces
from agentkv_evals.training.speak import as_dicts
from agentkv_evals.training.step import Stepper
from agentkv_evals.training.tokenizer import single_words, split_names
from agentkv_evals.worlds.build import make_item
from agentkv_evals.worlds.lessons import Level, lesson

LEVEL = Level(tokens=256, depth_cap=4, new_share=0.3, extras=0.8, roles=0.4)
SMALL = Shape(layers=3, heads=8, mlp=128)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(model_directory() / "tokenizer.json"))


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(SMALL)
    construct(decoder, seed=0)
    decoder.to(torch.bfloat16).float()  # what an export keeps
    return decoder.eval()


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write(model, Tokenizer.from_str(tokenizer.to_str()), folder)
    return folder


def test_every_byte_survives_the_tokenizer(tokenizer):
    text = "".join(chr(code) for code in range(1, 256)) + " 1234567890 日本語 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert all(tokenizer.token_to_id(byte) is not None for byte in "!~Ġ")


def test_digits_and_the_worlds_words_are_single_tokens(tokenizer):
    assert tokenizer.encode("2026").tokens == list("2026")
    assert [word for word in single_words() if len(tokenizer.encode(f" {word}").ids) != 1] == []
    assert len(split_names(tokenizer)) <= 4  # of 750: `ell` is a token of its own, so Bel-lok is B-ell-ok


def test_the_quick_encoder_equals_the_chat_template(encoder):
    loaded = AutoTokenizer.from_pretrained(model_directory())
    for family, depth in (("chain", 2), ("judge", 1), ("quote", 0), ("total", 3)):
        item = make_item(family=family, depth=depth, seed=depth)
        text = loaded.apply_chat_template(as_dicts(item.reader_messages()), tokenize=False, add_generation_prompt=True)
        assert loaded(text, add_special_tokens=False)["input_ids"] == encoder.item(item)[0]


def test_the_template_shows_names_and_nothing_else(encoder):
    loaded = AutoTokenizer.from_pretrained(model_directory())
    messages = [{"role": "user", "content": "a", "name": "critic"}, {"role": "user", "content": "b"}]
    assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user name=critic\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_lesson_weighs_its_decisive_words(encoder):
    rng = random.Random(1)
    for _ in range(20):
        row = encoder.lesson(lesson(rng, LEVEL), 257)
        if row is not None:
            ids, classes = row
            assert len(ids) == len(classes) <= 257
            assert END_ID in ids
            assert CONTEXT in classes
    packed = pack([([5, 6], [CONTEXT, DECISIVE])], 4)
    assert packed.tolist() == [[[5, 6, 0, 0]], [[CONTEXT, DECISIVE, IGNORED, IGNORED]]]


def test_position_heads_look_where_they_are_built_to_look(model):
    ids = torch.randint(3, 4096, (1, 40), generator=torch.Generator().manual_seed(0))
    attention = model.layers[0].self_attn
    cos, sin = rope_tables(SMALL, 40, "cpu")
    x = model.layers[0].input_layernorm(model.embed_tokens(ids))
    q, k = (
        rotate(projection(x).view(1, 40, 8, 64).transpose(1, 2), cos, sin)
        for projection in (attention.q_proj, attention.k_proj)
    )
    mass = (q @ k.transpose(-1, -2) / 8).masked_fill(torch.ones(40, 40).triu(1).bool(), -1e9).softmax(-1)[0]
    for head, offset in enumerate((1, 2, 3, 4)):
        assert mass[head, 20, 20 - offset] > 0.8


def test_export_runs_in_transformers_as_in_training(model, exported):
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ids = torch.randint(0, 4096, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids), atol=2e-4, rtol=2e-4)


def test_weights_survive_a_checkpoint_in_parts(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_BYTES", 3_000_000)
    checkpoint.save(model, tmp_path)
    assert len(list(tmp_path.glob("weights-*"))) > 1
    again = checkpoint.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_steps_lower_the_loss_on_one_batch(encoder):
    decoder = Decoder(SMALL)
    construct(decoder, seed=0)
    stepper, losses = Stepper(decoder, "cpu"), []
    batch = torch.from_numpy(make_shard(random.Random(0), encoder, LEVEL, 2).astype("int64"))
    for _ in range(4):
        stepper.set_rate(1e-3)
        stepper(batch)
        losses.append(stepper.loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_a_plan_runs_its_stages_and_ends_at_rate_zero():
    stages = PLANS["finish"]
    assert at(stages, 0.0) == (0, stages[0].rate[0])
    assert at(stages, 1.0) == (len(stages) - 1, 0.0)
    assert abs(sum(stage.share for stage in stages) - 1) < 1e-9


def test_placed_keys_are_those_of_the_readers_position(exported, encoder):
    """Layer 0's keys and values depend on token and position only, so there careless reuse equals full prefill."""
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    item = make_item(family="lookup", depth=0, seed=4)
    cut = pieces(item, encoder)
    assert [token for piece in cut for token in piece.ids] == encoder.item(item)[0]
    full, reused = DynamicCache(), DynamicCache()
    grader = Careless(loaded, encoder)
    with torch.no_grad():
        loaded(torch.tensor([cut[0].ids + cut[1].ids]), past_key_values=full)
        loaded(torch.tensor([cut[0].ids]), past_key_values=reused)
        grader.place(reused, item, cut[1])
    torch.testing.assert_close(reused.layers[0].keys, full.layers[0].keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reused.layers[0].values, full.layers[0].values, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(reused.layers[1].values, full.layers[1].values, atol=1e-3)


def test_evaluation_makes_cells_and_tables(exported):
    cells = evaluate(exported, Wanted(per_cell=1, families=("chain",), positions=("last",), careless=True))
    assert [cell.place.depth for cell in cells] == [1, 2, 3, 4]
    assert len(tables(cells)) == 1


def test_evaluation_goes_on_where_it_stopped(exported, tmp_path):
    """Cells of the file are not measured again, a cell of other settings is, and workers give the same cells."""
    path = tmp_path / "cells.json"
    wanted = Wanted(per_cell=2, families=("lookup",), careless=True)
    told = []
    first = evaluate(exported, replace(wanted, positions=("last",)), json_file=path, tell=told.append)
    assert told == first
    told.clear()
    both = evaluate(exported, wanted, workers=2, json_file=path, tell=told.append)
    assert both == [*first, *told]
    assert [cell.place.question_position for cell in told] == ["first"]
    assert evaluate(exported, wanted) == both
    assert [Cell.from_json(entry) for entry in json.loads(path.read_text())["cells"]] == both
    more = evaluate(exported, replace(wanted, per_cell=3), json_file=path)
    assert [cell.items for cell in more] == [3, 3]


def test_evaluation_keeps_off_the_cells_of_another_model(exported, tmp_path):
    path = tmp_path / "cells.json"
    path.write_text(json.dumps({"worlds": "worlds-1", "weights_sha256": "another", "cells": []}))
    with pytest.raises(OtherSettings, match="another file"):
        evaluate(exported, Wanted(per_cell=1, families=("lookup",)), json_file=path)


def test_the_repository_holds_the_trained_model():
    assert is_trained(model_directory())
    assert (model_directory() / "model.safetensors").stat().st_size < 30 * 2**20
