"""Each example runs, its agents are right about what the reports say plainly, and reuse happens."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

ANSWERS = {
    "map_reduce": ["analyst: Summary: Julia is in the terrace. Leon is in the workshop. Karl is in the hut."],
    "supervisor": ["writer: Answer: Julia is in the terrace. Karl is in the hut. Disputed: Niko."],
    "swarm": [
        "critic: Critique: The reports disagree about Niko: the pantry or the stable.",
        "analyst: Summary: Leon is in the workshop.",
    ],
    "debate": ["judge: Verdict: Julia is in the terrace. Candidate 2 is right."],
    "plan_execute": ["writer: Answer: Julia is in the terrace. Leon is in the workshop. Karl is in the hut."],
    "rag": [
        "writer: Answer: Karl is in the hut. Oskar is in the market.",
        "analyst: Summary: Karl is in the hut. Lukas is in the chapel.",
    ],
}


def test_there_is_an_answer_for_every_example() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"world"} == ANSWERS.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_examples_answer_with_reuse(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    importlib.import_module(name).main()
    printed = capsys.readouterr().out
    for answer in ANSWERS[name]:
        assert answer in printed
    total = printed.splitlines()[-1].split()
    assert total[0] == "all"
    assert int(total[-1].removesuffix("%")) >= 20


def test_examples_are_programs() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "debate.py"], capture_output=True, text=True, check=True, cwd=EXAMPLES.parent
    )
    assert "Candidate 2 is right" in done.stdout
