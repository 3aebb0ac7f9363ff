"""`agentkv serve --pipeline-stages`: answers, says so while it is not ready, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

COMMAND = "from agentkv.cli import main; main()"


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def server(small_model):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--model", str(small_model("qwen2")), "--kv-memory", "16MiB", "--port", str(port)]
    command = [sys.executable, "-c", COMMAND, "serve", *options, "--pipeline-stages", "2", "--layers", "1,2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        yield process, http
    process.kill()
    process.wait()


def test_a_server_over_stages_outlives_one_of_them(server) -> None:
    process, http = server

    def status(path: str) -> int:
        assert process.poll() is None
        try:
            return http.get(path).status_code
        except httpx.ConnectError:
            return 0

    wait_for(lambda: status("/ready") == 200)
    model = http.get("/v1/models").json()["data"][0]["id"]
    chat = {"model": model, "messages": [{"role": "user", "content": "the sea is rising"}], "ignore_eos": True}
    short = {**chat, "max_tokens": 8, "temperature": 0}
    first = http.post("/v1/chat/completions", json=short).json()["choices"][0]["message"]["content"]

    stages = children_of(process.pid)
    assert len(stages) == 2
    with http.stream("POST", "/v1/chat/completions", json={**chat, "max_tokens": 4000, "stream": True}) as response:
        lines = response.iter_lines()
        while "delta" not in next(lines):
            pass
        os.kill(stages[1], signal.SIGKILL)
        rest = "".join(lines)
    assert "engine_restarting" in rest
    assert "was ended by signal 9" in rest
    assert status("/ready") == 503
    assert http.get("/health").json()["status"] == "restarting"
    again = http.post("/v1/chat/completions", json=short).json()  # it waits for the stages
    assert again["choices"][0]["message"]["content"] == first
    assert status("/ready") == 200

    stages = children_of(process.pid)
    process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in stages), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "1,2"], "give --pipeline-stages too"),
        (["--pipeline-stages", "4"], "4 stages share 3 layers: give at most 3 stages"),
        (["--pipeline-stages", "2", "--layers", "1,1"], "give 2 counts of 1 or more that add up to 3"),
        (["--pipeline-stages", "2", "--devices", "cpu"], "1 devices for 2 stages"),
        (["--pipeline-stages", "2", "--device", "cuda", "--devices", "99,98"], "device 'cuda:99' is not among the"),
    ],
)
def test_stages_that_can_not_be_made_are_refused_in_one_line(
    small_model, options, message, monkeypatch, capsys
) -> None:
    from agentkv.cli import main

    monkeypatch.setattr(sys, "argv", ["agentkv", "serve", "--model", str(small_model("qwen2")), *options])
    capsys.readouterr()  # what making the model said
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1
