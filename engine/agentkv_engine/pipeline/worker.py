"""The process of one stage: `python -m agentkv_engine.pipeline.worker`, with its spec on stdin.

Four threads: one receives orders and builds their inputs, the main one computes, one sends answers (and samples, on the
last stage), one gives signs of life. The process ends with its driver: stdin is then at its end. SIGTERM, which systemd
sends to all processes of a service, is for the driver alone, which still needs its stages to finish what runs.
"""

import contextlib
import os
import queue
import signal
import threading
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import zmq

from agentkv_engine.pipeline.keys import GroupKeys
from agentkv_engine.pipeline.messages import Failed, Ready, Stop, decode_order
from agentkv_engine.pipeline.sender import Sender
from agentkv_engine.pipeline.spec import StageSpec
from agentkv_engine.pipeline.stage import Stage

BEAT_SECONDS = 0.5
"""Between two signs of life."""

LINGER_MS = 2000
"""How long what was said last may take to leave."""

STDIN = 0

PATIENCE = timedelta(hours=1)
"""How long a stage waits for its neighbours: the driver ends the group long before."""


def main() -> None:
    """Run until told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    size = int.from_bytes(_read(8), "little")
    spec = msgspec.msgpack.decode(_read(size), type=StageSpec)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    context, keys, ending = zmq.Context(), GroupKeys.of(spec.secret), threading.Event()
    threading.Thread(target=_beat, args=(context, keys, spec, ending), daemon=True).start()
    answers = _connect(context, zmq.PUSH, keys, spec.answers)
    prepared: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sender = Sender(answers, spec.device, prepared.put)
    try:
        _serve(spec, context, keys, sender, prepared)
    except Exception as error:
        sender.send(Failed(spec.stage, f"{type(error).__name__}: {error}"))
        raise
    finally:
        ending.set()
        sender.close()
        answers.close()
        context.term()  # waits for the other threads, whose calls now end and who close their own sockets


def _serve(
    spec: StageSpec,
    context: zmq.Context[Any],
    keys: GroupKeys,
    sender: Sender,
    prepared: "queue.SimpleQueue[Any]",
) -> None:
    _use(spec)
    stage = Stage(spec, sender.send)
    _meet(spec)
    threading.Thread(target=_receive, args=(spec, context, keys, stage, prepared), daemon=True).start()
    while not isinstance(work := prepared.get(), Stop):
        if isinstance(work, Exception):
            raise work
        if isinstance(work, Ready):
            sender.send(work)
        else:
            stage.run(work)
    dist.destroy_process_group()


def _meet(spec: StageSpec) -> None:
    """Neighbours find each other, and pass a number once around: connections are made before the first step."""
    dist.init_process_group(
        spec.backend,
        init_method=f"file://{spec.meeting}",
        rank=spec.stage,
        world_size=spec.num_stages,
        timeout=PATIENCE,
    )
    token = torch.zeros(1, device=spec.device)
    if spec.stage > 0:
        dist.recv(token, src=spec.stage - 1)
    if spec.stage < spec.num_stages - 1:
        dist.send(token, dst=spec.stage + 1)


def _use(spec: StageSpec) -> None:
    """Let this thread use the stage's device."""
    if torch.device(spec.device).type == "cuda":
        torch.cuda.set_device(spec.device)


def _receive(
    spec: StageSpec, context: zmq.Context[Any], keys: GroupKeys, stage: Stage, prepared: "queue.SimpleQueue[Any]"
) -> None:
    try:
        _use(spec)
        with _connect(context, zmq.DEALER, keys, spec.orders, identity=str(spec.stage).encode()) as orders:
            orders.send(b"")  # the driver can reach a peer once it has heard of it
            prepared.put(Ready(spec.stage))
            order = None
            while not isinstance(order, Stop):
                order = decode_order(orders.recv())
                prepared.put(stage.prepare(order))
    except Exception as error:
        prepared.put(error)


def _beat(context: zmq.Context[Any], keys: GroupKeys, spec: StageSpec, ending: threading.Event) -> None:
    sign = str(spec.stage).encode()
    with contextlib.suppress(zmq.ContextTerminated), _connect(context, zmq.PUSH, keys, spec.beats) as beats:
        while not ending.wait(BEAT_SECONDS):
            beats.send(sign)


def _connect(
    context: zmq.Context[Any], kind: int, keys: GroupKeys, endpoint: str, identity: bytes | None = None
) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.linger = LINGER_MS
    keys.as_stage(socket)
    if identity is not None:
        socket.identity = identity
    socket.connect(endpoint)
    return socket


def _read(size: int) -> bytes:
    """So many bytes of stdin, unbuffered: a thread goes on reading it until the process ends."""
    data = b""
    while len(data) < size and (part := os.read(STDIN, size - len(data))):
        data += part
    return data


def _end_with_driver() -> None:
    while os.read(STDIN, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
