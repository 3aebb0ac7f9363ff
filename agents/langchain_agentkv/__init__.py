"""agentkv for LangChain and LangGraph: a chat model whose agents read each other's KV."""

from langchain_agentkv.chat_model import ChatAgentKV
from langchain_agentkv.http_client import agentkv_async_http_client, agentkv_http_client
from langchain_agentkv.reuse_report import AgentReuse, ReuseReport

__all__ = ["AgentReuse", "ChatAgentKV", "ReuseReport", "agentkv_async_http_client", "agentkv_http_client"]
