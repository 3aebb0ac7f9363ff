"""The serving engine: model, paged KV, attention, scheduler. Knows nothing of messages, agents or HTTP."""
