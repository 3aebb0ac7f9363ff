"""Where a text that comes in pieces may be cut."""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins, short of all of it."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
