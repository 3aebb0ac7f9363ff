"""Clients that misbehave on the wire: half a request, no reading, closing one half, bytes that are no HTTP."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from agentkv.server.settings import ServerSettings
from fakes import FakeService, eventually, running_server

SETTINGS = ServerSettings(read_timeout=0.5, write_timeout=0.5, max_body_bytes=4096)


@pytest.fixture(scope="module")
def impatient() -> Iterator[tuple[str, FakeService]]:
    service = FakeService()
    with running_server(service, SETTINGS) as url:
        yield url, service


def connect(url: str) -> socket.socket:
    port = int(url.rsplit(":", 1)[1])
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    return sock


def request(body: bytes, *headers: str) -> bytes:
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def chat(text: str = "one two three", **fields: object) -> bytes:
    return json.dumps({"model": "fake/model", "messages": [{"role": "user", "content": text}], **fields}).encode()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/chat", request(chat())[:-5], request(chat(), "Expect: 100-continue")[:-5]]
)
def test_half_a_request_is_given_up(impatient: tuple[str, FakeService], sent: bytes) -> None:
    with closing(connect(impatient[0])) as sock:
        sock.sendall(sent)
        started = time.monotonic()
        answer = read_all(sock)
    assert time.monotonic() - started < 5
    assert b"408" in answer
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_half_a_request_behind_a_whole_one_is_given_up(impatient: tuple[str, FakeService]) -> None:
    with closing(connect(impatient[0])) as sock:
        sock.sendall(request(chat()) + request(chat())[:-5])
        started = time.monotonic()
        answer = read_all(sock)
    assert time.monotonic() - started < 5
    assert answer.count(b"HTTP/1.1") == 2
    assert b"200 OK" in answer
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_two_requests_at_once_get_two_answers(impatient: tuple[str, FakeService]) -> None:
    with closing(connect(impatient[0])) as sock:
        sock.sendall(request(chat()) + request(chat(), "Connection: close"))
        assert read_all(sock).count(b"200 OK") == 2


def test_a_reader_that_stops_is_dropped_and_its_chat_ends(impatient: tuple[str, FakeService]) -> None:
    url, service = impatient
    words = " ".join(["x" * 1000] * 4)
    service.script = lambda _: [words] * 20_000  # 80 MB: no kernel holds that
    with closing(connect(url)) as sock:
        sock.sendall(request(chat(stream=True)))
        assert b"200 OK" in sock.recv(1024)
        assert eventually(lambda: bool(service.streams))
        stream = service.streams[-1]
        assert eventually(stream.cancelled.is_set, seconds=10)
        assert len(read_all(sock)) < 20_000_000
    service.script = FakeService().script


def test_a_slow_reader_gets_everything(impatient: tuple[str, FakeService]) -> None:
    url, service = impatient
    service.script = lambda _: ["x" * 1000] * 1000
    with closing(connect(url)) as sock:
        sock.sendall(request(chat(stream=True), "Connection: close"))
        data = b""
        while piece := sock.recv(1 << 16):
            data += piece
            time.sleep(0.01)
    service.script = FakeService().script
    assert data.count(b"x" * 1000) == 1000
    assert b"[DONE]" in data


@pytest.mark.parametrize("stream", [True, False])
def test_closing_the_sending_half_is_hanging_up(impatient: tuple[str, FakeService], stream: bool) -> None:
    url, service = impatient
    service.hold_after = 1
    before = len(service.streams)
    with closing(connect(url)) as sock:
        sock.sendall(request(chat(stream=stream)))
        assert eventually(lambda: len(service.streams) > before)
        sock.shutdown(socket.SHUT_WR)
        assert eventually(service.streams[-1].cancelled.is_set)
    service.hold_after = None


def test_a_reset_is_hanging_up(impatient: tuple[str, FakeService]) -> None:
    url, service = impatient
    service.hold_after = 1
    before = len(service.streams)
    sock = connect(url)
    sock.sendall(request(chat(stream=True)))
    assert eventually(lambda: len(service.streams) > before)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    assert eventually(service.streams[-1].cancelled.is_set)
    service.hold_after = None


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000,
    ],
)
def test_what_is_no_http_is_refused(impatient: tuple[str, FakeService], sent: bytes) -> None:
    url, _ = impatient
    with closing(connect(url)) as sock:
        sock.sendall(sent)
        answer = read_all(sock)
    assert answer == b"" or b" 400 " in answer or b" 408 " in answer
    assert b"Traceback" not in answer
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_is_refused_before_it_is_read(impatient: tuple[str, FakeService], chunked: bool) -> None:
    url, _ = impatient
    content = iter([b" " * 1000] * 10) if chunked else b" " * 10_000
    response = httpx.post(f"{url}/v1/chat/completions", content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
