"""What driver and stages say to each other: typed messages in msgpack, never pickle.

To a stage go a step's rows and, before them, what has changed since the last step of what it knows: a stage holds the
same sequences as the driver, as far as rows need them. Arrays are packed (see `packing`).
"""

from typing import Any, Literal

import msgspec

from agentkv_engine.sampling.params import SamplingParams
from agentkv_engine.sampling.result import Sampled, TokenLogprobs

Question = Literal["attention", "reading", "value_deviation", "value_turn"]
"""The methods of `Observation` that look."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Enter(Message, frozen=True):
    """A request's first rows come.

    Attributes:
        sequence: its number.
        prompt, forced: token ids; `forced` is None where the output is sampled.
        constrained: a mask comes with every row that samples.
        pooled: its rows' last states are wanted.
        wants_logits: the logits of its rows go back.
    """

    sequence: int
    prompt: bytes
    forced: bytes | None
    sampling: SamplingParams
    num_logprobs: int | None
    prompt_logprobs: int | None
    constrained: bool
    pooled: bool
    wants_logits: bool


class Forget(Message, frozen=True):
    """A request has ended."""

    sequence: int


class Admit(Message, frozen=True):
    """What a sequence reads, as of now: slots by level (all the same where there is one list), and offsets."""

    residence: int
    num_tokens: int
    slots: list[bytes]
    offsets: bytes


class Drop(Message, frozen=True):
    """A sequence holds nothing any more."""

    residence: int


class BeginProbe(Message, frozen=True):
    """Rows that will be observed, and of those on reused keys the slots of the kept keys."""

    residence: int
    positions: bytes
    depth: int
    borrowed: bytes
    shared: list[bytes]


class EndProbe(Message, frozen=True):
    """The plan is made: rows on reused keys read the kept ones again."""

    residence: int


Update = Enter | Forget | Admit | Drop | BeginProbe | EndProbe


class Item(Message, frozen=True):
    """Rows of one sequence.

    Attributes:
        tokens: known token ids that are new.
        mask: which tokens may come, int32 words, where the request is constrained and samples.
    """

    sequence: int
    residence: int
    positions: bytes
    depths: bytes
    observed: bytes
    slots: bytes
    tokens: bytes
    num_logits: int
    samples: bool
    num_scored: int
    mask: bytes | None


class Decodes(Message, frozen=True):
    """Rows of sequences that go on, most of a step where many are served: the row of the token that came last, of full
    depth, from which the next is sampled. What the sequence holds is what its last row was told to. All are int32, one
    for each sequence.

    Attributes:
        places: in the step; items take the other places.
    """

    places: bytes
    sequences: bytes
    positions: bytes
    slots: bytes
    tokens: bytes


class StepOrder(Message, frozen=True):
    """Run a step."""

    number: int
    updates: list[Update]
    items: list[Item]
    decodes: Decodes


class Tell(Message, frozen=True):
    """What has changed, without a step."""

    updates: list[Update]


class Look(Message, frozen=True):
    """Look at a sequence: one of `Observation`'s questions.

    Attributes:
        layer: among the stage's.
        rereads: (positions, ranges to leave out), for `reading`.
    """

    number: int
    residence: int
    question: Question
    layer: int
    positions: bytes
    rereads: list[tuple[bytes, list[tuple[int, int]]]]


class ReadKV(Message, frozen=True):
    """Send what lies in these slots of one of the stage's layers: K and V, or traces."""

    number: int
    layer: int
    slots: bytes
    traces: bool


class WriteKV(Message, frozen=True):
    """Put these tensors there; nothing is answered."""

    layer: int
    slots: bytes
    traces: bool
    tensors: list[bytes]


class Stop(Message, frozen=True):
    """End."""


Order = StepOrder | Tell | Look | ReadKV | WriteKV | Stop


class Ready(Message, frozen=True):
    """A stage has loaded its layers and reached its neighbours."""

    stage: int


class ItemResult(Message, frozen=True):
    """What the last stage computed for one sequence."""

    sampled: Sampled | None
    scored: list[TokenLogprobs]
    logits: bytes
    pooled: bytes


class StepResult(Message, frozen=True):
    """What a step brought, item by item; `done` is when, as `time.monotonic()`."""

    number: int
    items: list[ItemResult]
    done: float


class StepTimes(Message, frozen=True):
    """When a stage did what, as `time.monotonic()`: its order came, its inputs were built, the activations were there,
    its layers had run."""

    number: int
    stage: int
    ordered: float
    built: float
    arrived: float
    done: float


class Reply(Message, frozen=True):
    """Answer of a look or a reading of KV; `flops` were spent on it."""

    number: int
    tensors: list[bytes]
    flops: int = 0


class Failed(Message, frozen=True):
    """A stage can't go on."""

    stage: int
    reason: str


Answer = Ready | StepResult | StepTimes | Reply | Failed

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_answers = msgspec.msgpack.Decoder(Answer)


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_order(data: bytes | memoryview) -> Any:
    """A message to a stage. Raises msgspec.ValidationError for anything else."""
    return _orders.decode(data)


def decode_answer(data: bytes | memoryview) -> Any:
    """A message to the driver. Raises msgspec.ValidationError for anything else."""
    return _answers.decode(data)
