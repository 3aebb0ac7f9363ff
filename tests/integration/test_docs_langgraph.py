"""The snippets of docs/langgraph.md run, one after the other, against a server with the embedded model."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkv.embedded import model_directory
from agentkv.service import Service
from fakes import running_server

PAGE = Path(__file__).parents[2] / "docs" / "langgraph.md"


@pytest.fixture
def url() -> Iterator[str]:
    with Service.open(model_directory()) as service, running_server(service) as url:
        yield url


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the page leaves its clients to the end of the process
def test_the_page_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 6
    names: dict[str, Any] = {"URL": url, "__name__": "docs"}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["report"].total.calls >= 1
