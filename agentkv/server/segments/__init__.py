"""`/v1/agentkv`: what is kept of a tenant's chats, and what its agents did."""
