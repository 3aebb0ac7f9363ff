"""A deleted thread takes its KV along: a wrapper around any LangGraph checkpointer.

checkpointer = ThreadCleanup(InMemorySaver(), model.segments)
graph = builder.compile(checkpointer=checkpointer)
...
checkpointer.delete_thread("42")  # its checkpoints, and the segments that no other thread has met
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)

from agentkv.segment_api import SegmentManager


class ThreadCleanup(BaseCheckpointSaver[Any]):
    """Does what `saver` does; with a thread's checkpoints it deletes the segments that belong to that thread alone.

    The checkpoints go first: where the segments can't be deleted, the error says so, and they still go by age.

    Args:
        saver: keeps the checkpoints.
        segments: whose segments; `ChatAgentKV.segments`, or `agentkv.service.Service.segments`.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any], segments: SegmentManager) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver
        self.segments = segments

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread's checkpoints, then its segments."""
        self.saver.delete_thread(thread_id)
        self.segments.delete(thread=thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self.saver.adelete_thread(thread_id)
        await asyncio.to_thread(self.segments.delete, thread=thread_id)

    @property
    def config_specs(self) -> list[Any]:
        """The saver's."""
        return self.saver.config_specs

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The saver's."""
        return self.saver.get_tuple(config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The saver's."""
        return await self.saver.aget_tuple(config)

    def list(self, config: RunnableConfig | None, **options: Any) -> Iterator[CheckpointTuple]:
        """The saver's."""
        return self.saver.list(config, **options)

    def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        """The saver's."""
        return self.saver.alist(config, **options)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """The saver's."""
        return self.saver.put(config, checkpoint, metadata, new_versions)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """The saver's."""
        return await self.saver.aput(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """The saver's."""
        self.saver.put_writes(config, writes, task_id, task_path)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """The saver's."""
        await self.saver.aput_writes(config, writes, task_id, task_path)

    def get_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        """The saver's."""
        return self.saver.get_delta_channel_history(config=config, channels=channels)

    async def aget_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        """The saver's."""
        return await self.saver.aget_delta_channel_history(config=config, channels=channels)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """The saver's."""
        self.saver.delete_for_runs(run_ids)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """The saver's."""
        await self.saver.adelete_for_runs(run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """The saver's."""
        self.saver.copy_thread(source_thread_id, target_thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """The saver's."""
        await self.saver.acopy_thread(source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], **options: Any) -> None:
        """The saver's."""
        self.saver.prune(thread_ids, **options)

    async def aprune(self, thread_ids: Sequence[str], **options: Any) -> None:
        """The saver's."""
        await self.saver.aprune(thread_ids, **options)

    def get_next_version(self, current: Any, channel: None) -> Any:
        """The saver's."""
        return self.saver.get_next_version(current, channel)

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> "ThreadCleanup":
        """The same around the saver with more classes allowed."""
        clone = copy.copy(self)
        clone.saver = self.saver.with_allowlist(extra_allowlist)
        clone.serde = clone.saver.serde
        return clone
