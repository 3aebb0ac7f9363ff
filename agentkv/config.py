"""Settings of the middleware, from code, flags or environment (`AGENTKV_*`). Nothing else reads the environment."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentkv.api import Reuse
from agentkv.errors import ConfigError

ENV_PREFIX = "AGENTKV_"


class Settings(BaseSettings):
    """Values not given are read from `AGENTKV_<NAME>`, then take the default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    @classmethod
    def from_values(cls, **values: object) -> Self:
        """Settings from flags; those that are None are left to environment and defaults.

        Raises:
            ConfigError: a value that can't be used, with its name.
        """
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            raise unusable(error) from None


def unusable(error: ValidationError) -> ConfigError:
    """What pydantic found wrong, in one line. Values that may be secret are not shown."""
    problems = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        got = "" if name in _SECRET else f" (got {problem['input']!r})"
        message = "no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name}: {message}{got}")
    return ConfigError(f"settings can't be used: {'; '.join(problems)}")


_SECRET = ("api_keys", "metrics_key", "tenant_salt")


class ServiceConfig(Settings):
    """Settings of one service.

    Attributes:
        kv_memory: most bytes of KV in the pool, e.g. `2GiB`.
        host_kv_memory: most bytes of KV in host memory: kept messages go there when the pool wants their room, and come
            back when a chat reads them. It is taken at start, page-locked beside a GPU; 0 takes none.
        reuse: what chats may read unless they say otherwise. Screening is opt-in until its error is calibrated.
        selector: rule that chooses repaired rows of screened chats unless they say otherwise.
        calibration: file of `agentkv calibrate` for this model: `usage.agentkv.estimated_kl` is taken from it.
        target_kl: screened chats repair more rows until that estimate is no higher, up to full prefill; needs a
            calibration.
        context_length: most tokens of prompt and reply; None takes the model's.
        max_prompt_tokens: longer prompts are refused; None leaves it to the context length.
        max_reply_tokens: chats may ask for at most so many tokens; None leaves it to the context length.
        max_rows_per_step: rows (prefill, decode, probe, repair) of one engine step.
        budget: `fixed` fills each step up to that; `throttling` follows what waits and decodes, and free KV memory.
        max_sequences: chats that run at once; more wait.
        max_kept_per_tenant: most bytes of kept segments of one tenant, whose oldest go first; None sets no limit.
        device: `cpu` or `cuda`.
        pipeline_stages: spread the layers over so many processes; None runs them in this one.
        devices: of the stages, e.g. `0,1`; None takes `device`, on GPUs one after the other.
        layers: how many each stage has, e.g. `16,16`; None is alike.
        steps_under_way: steps that may be ordered of stages before the first has come back; None is as many as stages.
        revision: of a model on the Hugging Face Hub: branch, tag or commit; None is its `main`.
        dtype: of weights and KV; `auto` is float32 on CPU (bfloat16 with int8 weights, where the processor has it) and
            bfloat16 elsewhere.
        quantization: `int8` keeps weights in 8 bits, on CPU; None keeps them in `dtype`.
        trace_layers: in layers 1 to this one rows leave traces of what they read: `reading_change` asks them. Two
            layers take 3% more memory with the embedded model, 7% with Llama 3.1 8B in bfloat16. 0 leaves none.
        min_segment_tokens: shorter messages, and shorter matches inside messages, are not worth keeping.
    """

    kv_memory: ByteSize = Field(default=ByteSize(1 << 30), gt=0)
    host_kv_memory: ByteSize = Field(default=ByteSize(0), ge=0)
    reuse: Reuse = Reuse.EXACT
    selector: str = "reading_change(0.3)"
    calibration: Path | None = None
    target_kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    context_length: int | None = Field(default=None, ge=2)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_reply_tokens: int | None = Field(default=None, ge=1)
    max_rows_per_step: int = Field(default=1024, ge=1)
    budget: Literal["fixed", "throttling"] = "fixed"
    max_sequences: int = Field(default=64, ge=1)
    max_kept_per_tenant: ByteSize | None = Field(default=None, gt=0)
    device: str = "cpu"
    pipeline_stages: int | None = Field(default=None, ge=1)
    devices: str | None = Field(default=None, pattern=r"^[\w:]+(,[\w:]+)*$")
    layers: str | None = Field(default=None, pattern=r"^\d+(,\d+)*$")
    steps_under_way: int | None = Field(default=None, ge=1)
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["int8"] | None = None
    trace_layers: int = Field(default=2, ge=0)
    min_segment_tokens: int = Field(default=16, ge=1)
