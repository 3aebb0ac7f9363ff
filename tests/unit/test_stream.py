"""Streams that are filled at once wake their event loop once, and lose nothing."""

import asyncio
import threading
import time

from agentkv.api import ChatDelta
from agentkv.stream import DeltaStream, WakeUps


def test_streams_filled_together_wake_their_loop_once(monkeypatch) -> None:
    texts = asyncio.run(read_two(monkeypatch))
    assert texts == ["a0 a1 end", "b0 b1 end"]


async def read_two(monkeypatch) -> list[str]:
    loop, wake_ups, woken = asyncio.get_running_loop(), WakeUps(), []
    plain = loop.call_soon_threadsafe

    def call_soon_threadsafe(call, *arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            woken.append(call)
        return plain(call, *arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
    streams = [DeltaStream(lambda: None, wake_ups) for _ in "ab"]
    readers = [asyncio.create_task(text_of(stream)) for stream in streams]
    await asyncio.sleep(0)

    def fill() -> None:
        for number in range(2):
            with wake_ups.together():
                for name, stream in zip("ab", streams, strict=True):
                    stream.push(ChatDelta(text=f"{name}{number} "))
        with wake_ups.together():
            streams[0].push(ChatDelta(text="end", finish_reason="stop"))
            wake_ups.flush()
            streams[1].push(ChatDelta(text="end", finish_reason="stop"))

    thread = threading.Thread(target=fill)
    thread.start()
    texts = [await reader for reader in readers]
    thread.join()
    assert len(woken) == 4
    return texts


async def text_of(stream: DeltaStream) -> str:
    return "".join([delta.text async for delta in stream])


def test_a_thread_that_woke_a_loop_steps_aside():
    async def run() -> tuple[float, float]:
        wake_ups, loop = WakeUps(), asyncio.get_running_loop()
        with wake_ups.together():
            begun = time.perf_counter()
            wake_ups.flush(aside=0.05)
            woke_nobody = time.perf_counter() - begun
            wake_ups.call(loop, lambda: None)
            begun = time.perf_counter()
            wake_ups.flush(aside=0.05)
            return woke_nobody, time.perf_counter() - begun

    woke_nobody, woke_one = asyncio.run(run())
    assert woke_nobody < 0.05 <= woke_one
