"""`agentkv eval accuracy` on tasks in plain text, with a random-weights model that has a tokenizer of its own."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from agentkv.errors import AgentKVError
from agentkv.tokenization import ChatTokenizer
from agentkv_evals.accuracy import run
from agentkv_evals.accuracy.rows import Row
from agentkv_evals.accuracy.settings import Settings
from agentkv_evals.accuracy.summary import summarise
from agentkv_evals.accuracy.tasks.chats import longest_run
from agentkv_evals.accuracy.tasks.sources import TaskName, TaskOptions
from agentkv_evals.accuracy.tasks.task import Task

RULES = ("exact_prefix", "repair_none", "repair_all", "random_rows(0.4)", "oracle(0.4)", "relay(3, 4, 2)")
TALK = (
    ("human", "Which of the two reports is right about the harbour, and why do you think so?"),
    ("Reader_Expert", "The committee met at nine in the morning to hear what the researchers had found."),
    ("Checking_Expert", "The second had counted 2,306 ships; the third had found no errors that mattered."),
    ("Computer_terminal", "exitcode: 0, the water had risen by 17 centimetres since 1912."),
    ("Reader_Expert", "Then we shall write that the sea is rising and that trade is falling. TERMINATE"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    problems = [
        {"question": f"A ship carries {n} boxes of 12 apples. How many?", "answer": f"{n} * 12\n#### {12 * n}"}
        for n in (3, 4)
    ]
    talk = {"id": "one", "messages": [{"agent": agent, "content": text} for agent, text in TALK]}
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(each) + "\n" for each in problems))
    (folder / "traces.jsonl").write_text(json.dumps(talk) + "\n")
    return folder


def options(name: TaskName, data) -> TaskOptions:
    if name is TaskName.RULER:
        return TaskOptions(
            name=name, items=1, length=256, reply_tokens=4, families="needle,tracking", question="last,first"
        )
    if name is TaskName.GSM8K:
        return TaskOptions(name=name, items=1, data=data / "gsm8k.jsonl", reply_tokens=8)
    return TaskOptions(name=name, items=1, data=data / "traces.jsonl")


def measure(model, out, task: TaskOptions, rules=RULES) -> list[Row]:
    settings = Settings.of(model=model, out=out, task=task, peers=False, rules=rules)
    return run.measure(settings, Console(file=io.StringIO()))


@pytest.mark.parametrize("name", [TaskName.RULER, TaskName.GSM8K, TaskName.TRACES])
def test_any_model_runs_every_task(small_model, tmp_path, data, name):
    rows = measure(small_model("llama"), tmp_path, options(name, data))
    steps = {TaskName.RULER: 1, TaskName.GSM8K: 5, TaskName.TRACES: 3}[name]
    assert {row.steps for row in rows} == {steps}
    by_arm = {each.arm: each for each in summarise(rows)}
    assert by_arm["exact_prefix"].exact == 1
    assert by_arm["repair_all"].exact == 1
    assert by_arm["repair_all"].fidelity.mean_kl < 1e-6
    assert by_arm["repair_all"].work == pytest.approx(1)
    careless = by_arm["repair_none"].fidelity.mean_kl
    assert careless > 1e-4
    assert by_arm["oracle(0.4)"].fidelity.mean_kl < careless
    # Of traces, some is read in its author's context, and buys nothing.
    assert by_arm["oracle(0.4)"].work == pytest.approx(0.28 if name is TaskName.TRACES else 0.4, abs=0.05)
    graded = {row.arm for row in rows if row.right is not None}
    assert graded == (set() if name is TaskName.TRACES else set(by_arm))
    assert all(row.run["task_version"].startswith(str(name)) for row in rows)
    assert measure(small_model("llama"), tmp_path, options(name, data)) == rows


def test_arms_together_give_what_each_gives_alone(small_model, tmp_path, data):
    """No arm reads what another left: an arm's figures do not depend on those beside it."""
    task = options(TaskName.GSM8K, data)
    together = measure(
        small_model("qwen2"), tmp_path / "all", task, ("repair_none", "random_rows(0.4)", "exact_prefix")
    )
    for rule in ("repair_none", "random_rows(0.4)", "exact_prefix"):
        alone = measure(small_model("qwen2"), tmp_path / rule, task, (rule,))
        expected = [row for row in together if row.arm in {each.arm for each in alone}]
        assert [replace(row, seconds=0, kl_sum=0) for row in alone] == [
            replace(row, seconds=0, kl_sum=0) for row in expected
        ]
        assert [row.kl_sum for row in alone] == pytest.approx([row.kl_sum for row in expected], abs=1e-4)


def opened(name: TaskName, small_model, data) -> tuple[Task, ChatTokenizer]:
    directory = small_model("llama")
    return options(name, data).source().open(directory), ChatTokenizer.from_directory(directory)


def test_what_agents_wrote_is_read_with_the_tokens_with_which_it_was_generated(small_model, data):
    task, tokenizer = opened(TaskName.GSM8K, small_model, data)
    cell, seed = task.items[0]
    first = task.case(cell, seed)
    assert [kept.source for kept in first.kept] == ["question"]
    assert (first.messages, first.hop) == ((), 1)
    # Tokens that a tokenizer would not give for this text.
    reply = (*(token for letter in "the answer is 36" for token in tokenizer.encode(letter)), tokenizer.end_of_turn_id)
    replies = ()
    for step in range(1, 6):
        case = task.case(cell, seed, replies)
        assert (case.step, len(case.messages)) == (step, min(step - 1, 1) + (step - 1 if step > 3 else 0))
        for message in case.messages:
            assert case.prompt[message.start : message.start + len(message.content)] == message.content
        replies = (*replies, reply)
    assert case.part == "voter"
    assert [message.source for message in case.messages] == ["question", "reply 1", "reply 2", "reply 3", "reply 4"]
    assert {message.content for message in case.messages[1:]} == {reply[:-1]}
    assert task.case(cell, seed, replies) is None
    assert task.is_right(case, reply) is True
    assert task.is_right(first, reply) is None
    assert task.same_choice(case, reply, tokenizer.encode("it is 36 boxes")) is True
    assert task.same_choice(case, reply, tokenizer.encode("it is 1,036")) is False
    assert task.same_choice(case, tokenizer.encode("I can't say"), tokenizer.encode("nor I")) is None


def test_in_group_chats_everybody_has_read_what_went_before(small_model, data):
    """Only the system prompt differs, and who speaks as whom."""
    task, _ = opened(TaskName.TRACES, small_model, data)
    cell, seed = task.items[0]
    replies = ()
    while (case := task.case(cell, seed, replies)) is not None:
        last = case
        replies = (*replies, case.reply)
    assert [message.source for message in last.messages] == ["message 0", "reply 1", "reply 2"]
    assert [kept.source for kept in last.kept] == ["message 3"]
    for message in last.messages[1:]:
        assert sum(end - start for start, end in message.unseen) < message.start / 2


@pytest.mark.parametrize("family", ["needle", "multikey", "tracking", "words"])
def test_generated_texts_hold_their_answers_at_the_length_asked_for(small_model, family):
    _, tokenizer = opened(TaskName.RULER, small_model, None)
    task = (
        TaskOptions(name=TaskName.RULER, families=family, topology="parallel,chain", length=600)
        .source()
        .open(small_model("llama"))
    )
    for cell, seed in task.items[::4]:
        case = task.case(cell, seed)
        tokens = sum(len(message.content) for message in case.messages)
        assert 600 <= tokens < 600 * 1.5
        asked = task._asked(cell, seed)
        assert task.is_right(case, tokenizer.encode("They are " + ", ".join(asked.answers)))
        assert not task.is_right(case, tokenizer.encode("I do not know."))
        text = " ".join(asked.texts)
        assert all(answer in text and answer not in asked.question for answer in asked.answers)
        unseen = [sum(end - start for start, end in message.unseen) for message in case.messages]
        assert (unseen[-1] < case.messages[-1].start / 2) == (cell.topology == "chain")


def test_runs_of_equal_tokens():
    assert longest_run([9, 1, 2, 3, 4], [1, 2, 3, 4]) == (1, 0, 4)
    assert longest_run([1, 2, 3, 4], [7, 7, 1, 2, 3, 5]) == (0, 2, 3)
    assert longest_run([1], [2]) == (0, 0, 0)
    assert longest_run([], [2]) == (0, 0, 0)


@pytest.mark.parametrize("line", ["[]", '{"question": "?"}', '{"question": "?", "answer": "none"}', "{"])
def test_data_that_is_no_problem_is_named(small_model, tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(AgentKVError, match="line 1"):
        TaskOptions(name=TaskName.GSM8K, data=path, items=1).source().open(small_model("llama"))


def test_more_items_than_there_are_is_refused(small_model, data):
    task = replace(options(TaskName.GSM8K, data), items=3).source().open(small_model("llama"))
    with pytest.raises(AgentKVError, match="2 items"):
        _ = task.items
