"""agentkv for LangChain and LangGraph: a chat model whose agents read each other's KV."""

from langchain_agentkv.chat_model import ChatAgentKV

__all__ = ["ChatAgentKV"]
