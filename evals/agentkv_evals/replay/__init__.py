"""`agentkv replay`: recorded conversations of several agents, turn by turn, under every way of reuse."""
