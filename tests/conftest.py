"""Fixtures that every test may ask for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from small_models import write_small_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`small_model("qwen2")`: a directory with that family's checkpoint, written once a session (and xdist worker)."""
    written: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in written:
            written[family] = write_small_model(tmp_path_factory.mktemp(family), family)
        return written[family]

    return directory
