"""Request fields that the server does not act on: which may pass, and which would change the answer.

Nothing is silently ignored. A field that cannot change the reply passes; one that this version can't honour passes only
with a value that asks for nothing; any other is refused by name.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema

from agentkv.server.errors import ApiError


class FieldPolicy:
    """What to do with fields beyond those that are honoured.

    Args:
        harmless: fields that cannot change the reply, whatever their value.
        neutral: fields that are not honoured, with the values that ask for nothing; null always does.
    """

    def __init__(self, *, harmless: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
        self._harmless = harmless
        self._neutral = neutral

    def describe(self, schema: dict[str, Any]) -> None:
        """Tell a body's JSON schema of these fields, and that there are no others."""
        known = schema.setdefault("properties", {})
        for name in sorted(self._harmless - known.keys()):
            known[name] = {"description": "Accepted; it changes nothing."}
        for name, values in sorted(self._neutral.items()):
            known.setdefault(name, {"enum": [None, *values], "description": "Not supported but for these values."})
        schema["additionalProperties"] = False

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an object that has these fields only."""
        schema: dict[str, Any] = {"type": "object"}
        self.describe(schema)
        return schema

    def check(self, fields: Mapping[str, Any], where: str = "") -> None:
        """Pass or refuse `fields`; `where` is the path in front of their names.

        Raises:
            ApiError: 400, naming the field.
        """
        for name, value in fields.items():
            if value is None or name in self._harmless:
                continue
            param = f"{where}{name}"
            if name not in self._neutral:
                message = f"{param}: this server knows no such field; leave it out"
                raise ApiError(400, message, param=param, code="unknown_parameter")
            if not any(value == other and type(value) is type(other) for other in self._neutral[name]):
                message = f"{param}: not supported by this version of agentkv; leave it out"
                raise ApiError(400, message, param=param, code="unsupported_parameter")


CHAT_FIELDS = FieldPolicy(
    harmless=frozenset(
        {
            "metadata",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "user",
        }
    ),
    neutral={
        "audio": (),
        "best_of": (1,),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "reasoning_effort": (),
        "return_token_ids": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
)

# Clients send back messages as they got them, with fields of other vendors.
MESSAGE_FIELDS = FieldPolicy(
    harmless=frozenset({"annotations", "id", "reasoning"}),
    neutral={"audio": (), "function_call": (), "refusal": ("",)},
)

COMPLETION_FIELDS = FieldPolicy(
    harmless=frozenset({"user", "session_id", "service_tier", "metadata"}),
    neutral={"return_token_ids": (False,), "use_beam_search": (False,), "skip_special_tokens": (True,)},
)

RESPONSE_FIELDS = FieldPolicy(
    harmless=frozenset(
        {
            "include",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
            "service_tier",
            "session_id",
            "stream_options",
            "user",
        }
    ),
    neutral={
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "prompt": (),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    },
)

ANTHROPIC_FIELDS = FieldPolicy(
    harmless=frozenset({"cache_control", "inference_geo", "metadata", "service_tier", "session_id", "speed"}),
    neutral={"container": (), "context_management": (), "mcp_servers": ([],), "output_config": (), "output_format": ()},
)

STREAM_OPTIONS = FieldPolicy(
    harmless=frozenset({"include_usage", "include_obfuscation"}), neutral={"continuous_usage_stats": (False,)}
)

StreamOptions = Annotated[dict[str, Any], WithJsonSchema(STREAM_OPTIONS.schema())]
