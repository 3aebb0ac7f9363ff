"""What `/v1/agentkv` answers."""

from dataclasses import dataclass
from typing import Literal

from agentkv.agent_statistics import AgentFigures
from agentkv.segment_api import SegmentInfo
from agentkv.server.answers import CLOSED, Answer, UsageAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAnswer(SegmentInfo):
    """A kept segment."""

    __pydantic_config__ = CLOSED

    object: Literal["segment"]


class SegmentsAnswer(Answer):
    """All of the caller's."""

    object: Literal["list"]
    data: list[SegmentAnswer]


class DeletedAnswer(Answer):
    """How many are gone."""

    deleted: int


class PinnedAnswer(Answer):
    """It is pinned."""

    pinned: Literal[True]


class UnpinnedAnswer(Answer):
    """It is pinned no longer; whether it was."""

    pinned: Literal[False]
    unpinned: bool


class WarmAnswer(Answer):
    """The segments of what was read."""

    segments: list[str]
    usage: UsageAnswer


class StatsAnswer(Answer):
    """The caller's agents, and what is kept of their words."""

    agents: dict[str, AgentFigures]
    segments: int
    tokens: int
    num_bytes: int
    pinned_bytes: int
