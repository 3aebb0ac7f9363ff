"""A segment: the kept KV of a text, with all that says where it may be read."""

from dataclasses import dataclass

from agentkv.segment.aligner import Tokens
from agentkv.segment.context import Context
from agentkv_engine.reuse import Resident


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """The kept KV of (a stretch of) a message; T tokens.

    Attributes:
        segment_id: unique among a recognizer's segments.
        tenant: whose; never read by another.
        text: the whole message as rendered, or the reply as returned.
        digest: xxh3-128 of the text.
        tokens: the resident's token ids with the characters of the text behind each.
        context: where its author stood, with all the author had seen.
        fingerprint: of the context: equal where the author had seen the same.
        resident: the KV, by handle, with its token ids.
    """

    segment_id: int
    tenant: str
    text: str
    digest: int
    tokens: Tokens
    context: Context
    fingerprint: tuple[int, int, int]
    resident: Resident

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens whose KV it is."""
        return self.resident.token_ids

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.resident.num_tokens
