"""The service on a small model: what is recognised, kept, read, shared, refused, and left behind."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentkv.api import ChatDelta, ChatMessage, ChatRequest, Reuse, Usage
from agentkv.config import ServiceConfig
from agentkv.errors import ConfigError, ContextTooLong, InvalidRequest, ModelError, ServiceClosed
from agentkv.sampling import Sampling
from agentkv.service import Service

REPORT = (
    "The first of them had read the tide tables from 1912 to 1948, and she said that the water had risen by 17 "
    "centimetres; the second had counted 2,306 ships; the third had been asked to look for errors and found none."
)
UNICODE = "naïve café 🚢🚢 한국어 — e\u0301 ﬁ 中文：港口的水位上升了十七厘米，第二位研究员数了两千三百零六艘船。"


@pytest.fixture
def service(small_model) -> Iterator[Service]:
    with Service.open(small_model("qwen2"), ServiceConfig(kv_memory=64 << 20)) as service:
        yield service
        service.check()


def messages(system: str, *contents: str) -> tuple[ChatMessage, ...]:
    users = (ChatMessage(role="user", content=content) for content in contents)
    return (ChatMessage(role="system", content=system), *users)


def ask(service: Service, *chat: ChatMessage, tenant: str = "", **options) -> tuple[str, Usage]:
    options = {"max_tokens": 8, "reuse": Reuse.SCREENED, **options}
    deltas = list(service.submit(ChatRequest(messages=chat, **options), tenant=tenant))
    assert deltas[-1].usage is not None
    return "".join(delta.text for delta in deltas), deltas[-1].usage


def total(usage: Usage) -> int:
    return usage.reuse.prefix + usage.reuse.reused + usage.reuse.repaired + usage.reuse.computed


def test_a_message_that_another_agent_has_read_is_reused(service: Service) -> None:
    ask(service, *messages("You count ships.", REPORT))
    critic = messages("You are a critic with another prompt.", "Look at this.", REPORT)
    _, usage = ask(service, *critic, selector="query_attention(0.2)")
    assert usage.reuse.segments >= 1
    assert usage.reuse.reused + usage.reuse.repaired > 40
    assert total(usage) == usage.prompt_tokens
    assert usage.reuse.row_layers < 0.8 * usage.reuse.full_row_layers


def test_a_reply_is_reused_as_decode_computed_it(service: Service) -> None:
    reply, _ = ask(service, *messages("You write.", "Go on."), forced_reply=REPORT)
    _, usage = ask(service, *messages("You judge.", f"Is this good?\n<text>{reply}</text>"))
    assert usage.reuse.reused + usage.reuse.repaired >= 40


def test_exact_and_off_give_the_same_answer_and_screened_with_repair_all_too(service: Service) -> None:
    chat = messages("You count ships.", REPORT, "How many ships?")
    ask(service, *messages("You read.", REPORT))
    off, _ = ask(service, *chat, reuse=Reuse.OFF, max_tokens=40)
    exact, _ = ask(service, *chat, reuse=Reuse.EXACT, max_tokens=40)
    warm, usage = ask(service, *chat, reuse=Reuse.EXACT, max_tokens=40)
    repaired, all_usage = ask(service, *chat, selector="repair_all", max_tokens=40)
    assert off == exact == warm == repaired
    assert usage.reuse.prefix > 0
    assert all_usage.reuse.reused == 0


def test_tenants_and_salts_share_nothing(service: Service) -> None:
    ask(service, *messages("You read.", REPORT), tenant="ann")
    for options in ({"tenant": "bob"}, {"tenant": "ann", "cache_salt": "x"}, {"tenant": "ann\x1fx"}):
        _, usage = ask(service, *messages("You judge.", REPORT), **options)
        assert usage.reuse.computed == usage.prompt_tokens
    _, usage = ask(service, *messages("You judge.", REPORT), tenant="ann")
    assert usage.reuse.computed < usage.prompt_tokens


def test_five_agents_that_ask_the_same_new_text_at_once_compute_it_once(service: Service) -> None:
    def agent(number: int) -> Usage:
        return ask(service, *messages(f"You are agent number {number}.", REPORT, f"Question {number}?"))[1]

    with ThreadPoolExecutor(5) as pool:
        usages = list(pool.map(agent, range(5)))
    computed = sorted(usage.reuse.computed for usage in usages)
    assert computed[-1] == max(usage.prompt_tokens for usage in usages) or computed[-1] > 60
    assert all(
        usage.reuse.reused + usage.reuse.repaired > 40 for usage in usages if usage.reuse.computed != computed[-1]
    )
    assert sum(usage.reuse.segments > 0 for usage in usages) == 4


def test_whoever_waits_for_words_is_served_when_their_writer_is_cancelled(service: Service) -> None:
    first = service.submit(ChatRequest(messages=messages("You read.", REPORT * 8), reuse=Reuse.SCREENED, max_tokens=4))
    second = service.submit(
        ChatRequest(messages=messages("You judge.", REPORT * 8), reuse=Reuse.SCREENED, max_tokens=4)
    )
    first.cancel()
    assert list(second)[-1].finish_reason in ("stop", "length")


def test_the_first_token_does_not_wait_until_the_prompt_is_kept(service: Service, monkeypatch) -> None:
    has_come, waited, keep_prompt = threading.Event(), [], service._keeper.keep_prompt

    def keep(*prompt) -> None:
        waited.append(has_come.wait(timeout=5))
        keep_prompt(*prompt)

    monkeypatch.setattr(service._keeper, "keep_prompt", keep)
    chat = ChatRequest(messages=messages("You read.", REPORT), reuse=Reuse.SCREENED, max_tokens=4)
    for _ in service.submit(chat):
        has_come.set()
    assert waited == [True]


def test_the_same_new_text_twice_in_one_prompt(service: Service) -> None:
    ask(service, *messages("You read.", REPORT, REPORT))
    _, usage = ask(service, *messages("You judge.", REPORT, "and", REPORT))
    assert usage.reuse.segments == 2


def test_a_prompt_that_is_one_segment_alone_is_answered(service: Service) -> None:
    chat = (ChatMessage(role="user", content=REPORT),)
    first, _ = ask(service, *chat)
    second, usage = ask(service, *chat)
    assert first == second
    assert usage.reuse.computed <= 16


@pytest.mark.parametrize("content", ["", " ", "\n", "🙂", UNICODE, "<|im_end|>", "a" * 3000])
def test_any_text_can_be_asked_and_comes_back(service: Service, content: str) -> None:
    for system in ("You read.", "You judge what you read."):
        for reuse in Reuse:
            text, usage = ask(service, *messages(system, content), reuse=reuse, forced_reply=content)
            assert usage.prompt_tokens == total(usage)
            assert content in (text, UNICODE)  # Qwen2's tokenizer composes e + accent


def test_ten_thousand_tiny_messages_are_refused_by_length_not_by_time(service: Service) -> None:
    with pytest.raises(ContextTooLong, match="shorten the messages"):
        ask(service, *(ChatMessage(role="user", content=f"m{n}") for n in range(10_000)))
    _, usage = ask(service, *(ChatMessage(role="user", content="m") for _ in range(700)))
    assert usage.prompt_tokens == total(usage)


def test_generated_ids_come_back_as_they_were_in_every_mode(service: Service) -> None:
    chat = messages("You write.", "Go on.")
    for seed in range(
        200
    ):  # a random model says anything: look for plain text in tokens that the tokenizer would not use
        deltas = list(service.submit(ChatRequest(messages=chat, max_tokens=8, temperature=1.5, seed=seed)))
        reply = "".join(delta.text for delta in deltas)
        generated = [token for delta in deltas for token in delta.token_ids]
        if reply.isascii() and reply.isprintable() and service._tokenizer.encode(reply) != tuple(generated):
            break
    else:
        pytest.fail("no seed gave plain text")
    longer = (*chat, ChatMessage(role="assistant", content=reply), ChatMessage(role="user", content="And?"))
    for reuse in Reuse:
        owner = "0\x1f\x1f"
        prompt = service._tokenizer.prompt(longer, tenant=owner, splicer=service._prompts._generated.splicer(owner))
        _, usage = ask(service, *longer, reuse=reuse)
        assert usage.prompt_tokens == len(prompt.token_ids)
        message = prompt.messages[2]
        ids = prompt.token_ids[message.start : message.end]
        assert list(ids) == generated[: len(ids)]


def test_a_wild_temperature_or_seed_hurts_nobody(service: Service) -> None:
    for temperature in (1e-320, 1e-39, 1e-6, 1e6):
        ask(service, *messages("You write.", "Go on."), temperature=temperature)
    for seed in (-(1 << 65), 1 << 65):
        with pytest.raises(InvalidRequest, match="seed"):
            ask(service, *messages("You write.", "Go on."), seed=seed)
    assert service.health()["status"] == "ok"


def test_a_fault_that_strikes_one_chat_leaves_the_others_and_is_the_log_s_to_tell(
    service: Service, monkeypatch, caplog
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("planted")

    other = service.submit(ChatRequest(messages=messages("You write.", REPORT), max_tokens=200, reuse=Reuse.OFF))
    with monkeypatch.context() as patch:
        patch.setattr(service._keeper, "keep_prompt", broken)
        with pytest.raises(ServiceClosed, match="its log") as caught:
            ask(service, *messages("You read.", REPORT))
    assert "planted" not in str(caught.value)
    assert "ValueError: planted" in caplog.text
    assert list(other)[-1].finish_reason in ("stop", "length")
    ask(service, *messages("You read.", REPORT))


def test_a_stream_is_read_once(service: Service) -> None:
    stream = service.submit(ChatRequest(messages=messages("You write.", "x"), max_tokens=2))
    list(stream)
    with pytest.raises(RuntimeError, match="read once"):
        list(stream)


def test_rows_read_through_a_screened_prefix_are_not_kept_as_computed_there(service: Service) -> None:
    """Turn 2 of the critic finds its screened prompt; the message in it still is its author's, not the critic's."""
    ask(service, *messages("You read.", REPORT))
    critic = messages("You judge what the others say, and you have a longer prompt of your own.", REPORT)
    ask(service, *critic, selector="repair_none")
    before = len(service.segments.list())
    with_news = (*critic, ChatMessage(role="user", content="Something new. " * 60))
    _, usage = ask(service, *with_news, selector="repair_none")
    assert usage.reuse.prefix > 60
    assert len(service.segments.list()) == before + 1, "only the new message is kept"


def test_a_new_message_that_quotes_a_known_one_is_kept_whole(service: Service) -> None:
    header = REPORT[:90]
    ask(service, *messages("You read.", header))
    quoting = f"{header}\n" + "What follows is new, and it is longer than what it quotes. " * 6
    _, first = ask(service, *messages("You are the first.", quoting))
    _, second = ask(service, *messages("You are the second.", quoting))
    assert first.reuse.computed == first.prompt_tokens
    assert second.reuse.computed < 0.5 * second.prompt_tokens


def test_an_idle_service_pins_nothing(service: Service) -> None:
    ask(service, *messages("You read.", REPORT))
    assert service.memory().pinned == 0


def test_stop_strings_are_cut_wherever_tokens_end(service: Service) -> None:
    whole, _ = ask(service, *messages("You write.", "Go on."), max_tokens=60, reuse=Reuse.OFF)
    for stop in (whole[10:14], whole[20:29]):
        deltas = list(
            service.submit(ChatRequest(messages=messages("You write.", "Go on."), max_tokens=60, stop=(stop,)))
        )
        assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
        assert deltas[-1].finish_reason == "stop"


def test_of_a_draft_that_holds_only_what_stands_before_a_stop_string_counts(service: Service) -> None:
    report = REPORT * 8
    ask(service, *messages("You read.", report))
    chat = messages("You count ships.", report, "How many ships?")
    options = {
        "max_tokens": 24,
        "reuse": Reuse.SCREENED,
        "selector": "draft_reading(0.3)",
        "sampling": Sampling(logprobs=0),
    }
    whole = list(service.submit(ChatRequest(messages=chat, **options)))
    together = max(len(delta.token_ids) for delta in whole)
    assert together > 1, "the draft does not hold: take another chat"
    assert whole[-1].usage is not None
    assert whole[-1].usage.reuse.selector == "draft_reading(0.3, 8)"
    text = "".join(delta.text for delta in whole)
    cut = list(service.submit(ChatRequest(messages=chat, stop=(text[:1],), **options)))
    usage = cut[-1].usage
    assert usage is not None
    assert "".join(delta.text for delta in cut) == ""
    assert usage.completion_tokens == sum(len(delta.token_ids) for delta in cut) == 1
    assert sum(len(delta.logprobs) for delta in cut) == 1


def test_a_draft_needs_traces_one_process_and_no_target(small_model) -> None:
    for settings, reason in (({"trace_layers": 0}, "trace_layers"), ({"target_kl": 0.1}, "target KL")):
        config = ServiceConfig(kv_memory=64 << 20, selector="draft_reading(0.3)", **settings)
        with pytest.raises(ConfigError, match=reason), Service.open(small_model("qwen2"), config):
            pass


def test_leaving_the_loop_cancels_and_frees(service: Service) -> None:
    for _ in service.submit(ChatRequest(messages=messages("You write.", REPORT), max_tokens=2000)):
        break

    async def leave() -> None:
        async for _ in service.submit(ChatRequest(messages=messages("You write.", REPORT), max_tokens=2000)):
            break

    asyncio.run(leave())
    stream = service.submit(ChatRequest(messages=messages("You write.", REPORT), max_tokens=2000))
    stream.cancel()
    assert list(stream)[-1].finish_reason == "abort"
    ask(service, *messages("You write.", "Short."), max_tokens=1)  # a step later everything is released
    assert service.memory().pinned == 0


async def collect(service: Service, request: ChatRequest) -> list[ChatDelta]:
    return [delta async for delta in service.submit(request)]


def test_coroutines_and_threads_read_the_same(service: Service) -> None:
    request = ChatRequest(messages=messages("You write.", REPORT), max_tokens=20)
    deltas = asyncio.run(collect(service, request))
    assert "".join(d.text for d in deltas) == "".join(d.text for d in service.submit(request))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"selector": "nonsense"}, "nonsense"),
    ],
)
def test_wrong_requests_are_refused_at_once(service: Service, options: dict, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        service.submit(ChatRequest(messages=messages("You read.", "x"), **options))


def test_a_forced_reply_that_does_not_fit_is_refused_at_once(service: Service) -> None:
    with pytest.raises(ContextTooLong, match="leaves room for"):
        service.submit(ChatRequest(messages=messages("You write.", "x"), forced_reply=REPORT * 200))


def test_kv_memory_too_small_for_a_prompt_or_for_anything(small_model) -> None:
    with Service.open(small_model("qwen2"), ServiceConfig(kv_memory=200_000)) as service:
        with pytest.raises(ContextTooLong, match="at most"):
            ask(service, *messages("You read.", REPORT * 4))
        for n in range(12):
            ask(service, *messages(f"You are {n}.", f"{n}. {REPORT[:150]}"))
        service.check()
    with pytest.raises((ModelError, ConfigError), match="holds no block"):
        Service.open(small_model("qwen2"), ServiceConfig(kv_memory=100))


def test_a_device_that_is_not_here(small_model) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        Service.open(small_model("qwen2"), ServiceConfig(device="nonsense"))


def test_closing_ends_running_chats_with_a_clear_error(small_model) -> None:
    service = Service.open(small_model("qwen2"), ServiceConfig(kv_memory=64 << 20))
    stream = service.submit(ChatRequest(messages=messages("You write.", REPORT), max_tokens=5000))
    service.close()
    with pytest.raises(ServiceClosed, match="closed"):
        list(stream)
    with pytest.raises(ServiceClosed):
        service.submit(ChatRequest(messages=messages("You write.", "x")))
    service.close()


def test_a_fault_that_strikes_an_embedding_ends_it_alone(service: Service, monkeypatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as planted:
        planted.setattr("agentkv.embedder.Embedding", broken)
        (future,) = service.embedder.submit(["one"])
        assert isinstance(future.exception(timeout=60), RuntimeError)
    (future,) = service.embedder.submit(["one"])
    assert future.result(timeout=60).num_tokens > 0


def test_an_engine_that_fails_fails_loudly_and_nothing_hangs(small_model, monkeypatch, caplog) -> None:
    service = Service.open(small_model("qwen2"), ServiceConfig(kv_memory=64 << 20))

    def broken() -> None:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(service._engine, "step", broken)
    streams = [service.submit(ChatRequest(messages=messages("You write.", REPORT)))]
    with contextlib.suppress(ServiceClosed):  # it may have come before or after the failure
        streams.append(service.submit(ChatRequest(messages=messages("You read.", REPORT))))
    for stream in streams:
        with pytest.raises(ServiceClosed, match="its log") as caught:
            list(stream)
        assert "fell off the bus" in str(caught.value.__cause__)
    assert "fell off the bus" in caplog.text
    with pytest.raises(ServiceClosed):
        service.memory()
    assert service.health()["status"] == "closed"
    service.close()


def test_settings_come_from_values_then_environment(monkeypatch) -> None:
    monkeypatch.setenv("AGENTKV_KV_MEMORY", "2GiB")
    monkeypatch.setenv("AGENTKV_REUSE", "screened")
    config = ServiceConfig.from_values(reuse="off", selector=None)
    assert (config.kv_memory, config.reuse, config.selector) == (2 << 30, Reuse.OFF, "reading_change(0.3)")
    with pytest.raises(ConfigError, match="reuse"):
        ServiceConfig.from_values(reuse="sometimes")


def test_import_agentkv_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import agentkv, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
