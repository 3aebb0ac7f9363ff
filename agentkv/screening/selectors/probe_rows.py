"""The rows that look for what the prompt asks."""

from agentkv_engine.reuse import ReuseView

SHARE = 0.01
FEWEST, MOST = 16, 128


def trailing_rows(view: ReuseView) -> tuple[int, ...]:
    """The prompt's last rows behind the exact prefix: 1% of the prompt, at least 16, at most 128 of them.

    Most prompts of agents end with what is asked of the agent. Rows of the exact prefix are left out, because nothing
    that they read is stale.
    """
    wanted = min(max(round(view.num_tokens * SHARE), FEWEST), MOST)
    return tuple(range(max(view.num_tokens - wanted, view.num_prefix), view.num_tokens))
