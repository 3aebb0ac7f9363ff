"""What a pipeline is made of: arrays as bytes, layers and devices of stages, patience, keys."""

import numpy as np
import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from agentkv_engine.cache.levels import Levels
from agentkv_engine.config import EngineConfig, PipelineConfig
from agentkv_engine.errors import CheckpointError, PipelineRefused
from agentkv_engine.model.checkpoint import load_decoder
from agentkv_engine.pipeline.keys import GroupKeys
from agentkv_engine.pipeline.messages import Decodes, StepOrder, decode_order, encode
from agentkv_engine.pipeline.model import PipelineModel
from agentkv_engine.pipeline.packing import (
    pack_repeats,
    pack_stretches,
    pack_tensor,
    unpack_repeats,
    unpack_stretches,
    unpack_tensor,
)
from agentkv_engine.pipeline.split import split_layers, stage_devices
from agentkv_engine.pipeline.step_watch import FACTOR, FIRST_SECONDS, StepWatch

integers = st.lists(st.integers(-1, 40) | st.integers(-1, 2**31 - 2), max_size=60).map(
    lambda values: np.asarray(values, dtype=np.int64)
)


@given(values=integers)
def test_arrays_come_out_as_they_went_in(values: np.ndarray) -> None:
    assert unpack_stretches(pack_stretches(values)).tolist() == values.tolist()
    assert unpack_repeats(pack_repeats(values)).tolist() == values.tolist()


def test_a_prompt_takes_few_bytes() -> None:
    assert len(pack_stretches(np.arange(5, 8000))) == len(pack_repeats(np.full(8000, 32))) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_tensors_come_out_as_they_went_in(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).view(4, 6).to(dtype)
    assert torch.equal(unpack_tensor(pack_tensor(tensor.T), dtype, 6, 4), tensor.T)
    assert unpack_tensor(pack_tensor(tensor[:0]), dtype, -1, 6).shape == (0, 6)


@given(num_layers=st.integers(1, 80), num_stages=st.integers(1, 16))
def test_layers_are_split_alike(num_layers: int, num_stages: int) -> None:
    config = PipelineConfig(num_stages=num_stages)
    if num_stages > num_layers:
        with pytest.raises(PipelineRefused, match=f"at most {num_layers} stages"):
            split_layers(config, num_layers)
        return
    stages = split_layers(config, num_layers)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


def test_devices_are_those_asked_for_or_one_after_the_other() -> None:
    assert stage_devices(PipelineConfig(num_stages=2), "cuda") == ("cuda:0", "cuda:1")
    assert stage_devices(PipelineConfig(num_stages=2, devices=("3", "cuda:1")), "cuda") == ("cuda:3", "cuda:1")
    assert stage_devices(PipelineConfig(num_stages=2), "cpu") == ("cpu", "cpu")


def test_patience_follows_what_steps_have_taken() -> None:
    watch = StepWatch(grace=5)
    watch.begin(1, 10, now=0.0)
    assert watch.overdue(FIRST_SECONDS) is None
    watch.end(1, done=2.0)
    watch.begin(2, 20, now=3.0)  # 4 s are predicted
    watch.begin(3, 20, now=3.0)
    assert watch.overdue(3.0 + FACTOR * 4 + 5) is None
    assert watch.overdue(3.1 + FACTOR * 4 + 5) == pytest.approx(FACTOR * 4 + 5.1)
    watch.end(2, done=4.0)
    assert watch.overdue(10.0) is None, "the second one begins to run when the first has ended"


def test_only_who_knows_the_secret_is_heard() -> None:
    context = zmq.Context()
    driver = context.socket(zmq.PULL)
    GroupKeys.of(b"right").as_driver(driver)
    port = driver.bind_to_random_port("tcp://127.0.0.1")
    stranger, other, stage = (context.socket(zmq.PUSH) for _ in range(3))
    GroupKeys.of(b"wrong").as_stage(other)
    GroupKeys.of(b"right").as_stage(stage)
    try:
        for socket, text in ((stranger, b"plain"), (other, b"wrong"), (stage, b"right")):
            socket.connect(f"tcp://127.0.0.1:{port}")
            socket.send(text)
        assert driver.poll(5000)
        assert driver.recv() == b"right"
        assert not driver.poll(200)
    finally:
        context.destroy(linger=0)


def test_messages_are_typed() -> None:
    order = StepOrder(3, [], [], Decodes(b"", b"", b"", b"", b""))
    assert decode_order(encode(order)) == order
    with pytest.raises(ValueError, match="Expected"):
        decode_order(b"\x92\xa9StepOrder\xa1x")


def test_a_stage_reads_its_own_layers_only(small_model) -> None:
    """Tied weights: the last stage has the head, which is the embedding, and no embedding."""
    parts = [
        load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu", layers=layers)
        for layers in (range(2), range(2, 3))
    ]
    whole = load_decoder(small_model("qwen2"), dtype=torch.float32, device="cpu")
    first, last = (dict(part.named_parameters()) for part in parts)
    expected = dict(whole.named_parameters())
    assert {name.split(".")[0] for name in first} == {"embedding", "layers", "norm"}
    assert {name.split(".")[0] for name in last} == {"layers", "norm", "head"}
    assert torch.equal(first["layers.1.mlp.down.weight"], expected["layers.1.mlp.down.weight"])
    assert torch.equal(last["layers.0.mlp.down.weight"], expected["layers.2.mlp.down.weight"])
    assert torch.equal(last["head.weight"], expected["embedding.weight"])


def test_a_stage_numbers_its_layers_from_0() -> None:
    levels = Levels((2, 5, 8), 8)
    stage = levels.of_stage(range(4, 8))
    for layer in range(4):
        assert stage.list_of_layer(layer) == levels.list_of_layer(layer + 4)
        assert stage.list_of_queries(layer) == levels.list_of_queries(layer + 4)
    depths = np.asarray([2, 5, 8])
    assert stage.num_lists(depths - 4).tolist() == levels.num_lists(depths).tolist()
    assert stage.num_layers == 4


def test_what_can_not_be_piped_is_refused(small_model, tmp_path) -> None:
    two = PipelineConfig(num_stages=2)
    with pytest.raises(PipelineRefused, match="host memory"):
        PipelineModel(small_model("qwen2"), EngineConfig(pipeline=two, host_kv_memory=1 << 20))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        PipelineModel(tmp_path, EngineConfig(pipeline=two))
    with pytest.raises(ValueError, match="num_stages is 0"):
        PipelineConfig(num_stages=0)
    with pytest.raises(ValueError, match="steps_under_way 0"):
        PipelineConfig(num_stages=2, steps_under_way=0)
