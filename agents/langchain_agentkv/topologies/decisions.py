"""Who is next, and what is to be done: decisions of a topology, by a rule or by a model.

A decision is anything that LangChain can run: a function of the thread's messages, sync or async, or a runnable. Those
made here ask a model and hold its answer to a schema, so that it is always one of the choices.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable

Thread = list[AnyMessage]
Choice = RunnableLike[Thread, str | None]
"""From a thread to the name of the agent that speaks next; None ends."""
Plan = RunnableLike[Thread, list[str]]
"""From a thread to the tasks that answer it."""

FINISH = "FINISH"


def decision(decide: Choice | Plan) -> Runnable[Thread, Any]:
    """A decision as something to invoke."""
    return coerce_to_runnable(decide)


def choice_by_model(model: BaseChatModel, system: str, names: Sequence[str]) -> Runnable[Thread, str | None]:
    """Let a model choose among agents or finish.

    Args:
        model: one with structured output.
        system: instructions that say what each agent is for.
        names: the agents.
    """
    schema = _object("next_agent", {"next": {"type": "string", "enum": [*names, FINISH]}})
    return _asking(model, system, schema) | RunnableLambda(_chosen)


def plan_by_model(model: BaseChatModel, system: str, max_steps: int = 8) -> Runnable[Thread, list[str]]:
    """Let a model write a list of tasks.

    Args:
        model: one with structured output.
        system: instructions that say what a good task is.
        max_steps: most tasks of a plan.
    """
    steps = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": max_steps}
    return _asking(model, system, _object("plan", {"steps": steps})) | itemgetter("steps")


def _asking(model: BaseChatModel, system: str, schema: dict[str, Any]) -> Runnable[Thread, dict[str, Any]]:
    def instructed(thread: Thread) -> Thread:
        return [SystemMessage(system), *thread]

    answering: Any = model.with_structured_output(schema)
    return RunnableLambda(instructed) | answering


def _chosen(answer: dict[str, Any]) -> str | None:
    return None if answer["next"] == FINISH else answer["next"]


def _object(title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
