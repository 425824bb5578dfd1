"""Describe a language model and how it is served: an entry of the config's `models`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import NOT_IN_CACHE_KEY, Count, Text

_Variable = Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
#: Money per million tokens.
Price = Mapping[Literal["input", "output", "cached"], Annotated[float, Meta(ge=0)]]


@dataclass(frozen=True)
class Model:
    """A language model and how it is served."""

    model: Annotated[
        Text,
        Meta(
            description="Hub id or folder of a checkpoint; with the backend `openai`, the server's "
            "name of it.",
            examples=["Qwen/Qwen3-8B"],
        ),
    ]
    backend: Annotated[
        Literal["transformers", "vllm", "openai"],
        Meta(description="What serves the model."),
    ] = "transformers"
    revision: Annotated[
        str | None,
        Meta(
            description="Branch, tag or commit of a hub id, null takes the newest; as `dtype` and "
            "`quantization`, with the backend `openai` it is what `make serve` starts the server "
            "with."
        ),
    ] = None
    adapter: Annotated[
        str | None,
        Meta(description="Folder of a LoRA adapter that is put on the model without merging it."),
    ] = None
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Meta(
            description="Data type of the weights; `auto` is that of the files on a GPU and "
            "float32 on a CPU."
        ),
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "int4"],
        Meta(description="Quantisation of the weights when they are loaded, by bitsandbytes."),
    ] = "none"
    concurrency: Annotated[
        int,
        Meta(
            ge=1,
            le=100000,
            description="Conversations at once, on the device or on their way to the server.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 64
    context: Annotated[
        Count | None,
        Meta(description="Tokens of prompt and answer together; null takes the model's limit."),
    ] = None
    thinking: Annotated[
        bool | None,
        Meta(
            description="The chat template's `enable_thinking`; null takes the template's default, "
            "and a server gets no stop strings with `true`, as they would act inside the reasoning."
        ),
    ] = None
    template_options: Annotated[
        Mapping[Text, str | int | float | bool],
        Meta(
            description="Further variables of the chat template, such as `reasoning_effort: low`; "
            "`today` is the date for templates that read the clock, '2024-07-26' by default, and a "
            "server takes its own."
        ),
    ] = field(default_factory=dict)
    memory_fraction: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the GPU's memory that vLLM takes.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 0.9
    trust_remote_code: Annotated[
        bool, Meta(description="Code that comes with the checkpoint may run.")
    ] = False
    lora: Annotated[
        bool,
        Meta(
            description="The server loads LoRA adapters at runtime, as vLLM does: the model, a hub "
            "id or a folder, can be trained here, and its server plays all of its trained "
            "checkpoints.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = False
    base_url_env: Annotated[
        _Variable | None,
        Meta(
            description="Environment variable with the server's address; null takes OpenAI's own."
        ),
    ] = None
    api_key_env: Annotated[
        _Variable | None,
        Meta(
            description="Environment variable with the server's key; null takes OPENAI_API_KEY at "
            "OpenAI's own address and no key elsewhere.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    timeout: Annotated[
        float,
        Meta(
            gt=0, le=86400, description="Seconds that one request may take.", extra=NOT_IN_CACHE_KEY
        ),
    ] = 600
    retries: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Retries of a request that was refused for now or lost.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 8
    structured: Annotated[
        Literal["none", "choice", "json_schema"],
        Meta(
            description="The server's way to constrain an answer to given ones: none, vLLM's "
            "`structured_outputs` (`choice`) or OpenAI's `response_format` (`json_schema`)."
        ),
    ] = "none"
    omit: Annotated[
        tuple[Literal["temperature", "seed", "stop"], ...],
        Meta(
            description="Parameters that the server does not take.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ()
    price: Annotated[
        Price,
        Meta(
            description="Price per million tokens: `input`, `output` and, where input from the "
            "server's cache is cheaper, `cached`; empty for a model without a price.",
            examples=[{"input": 0.25, "output": 2.0, "cached": 0.025}],
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = field(default_factory=dict)
    max_tokens_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"] | None,
        Meta(
            description="Field of a request that limits its answer; null takes "
            "`max_completion_tokens` at OpenAI and Azure, `max_tokens` elsewhere, and the other "
            "where the server refuses that.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    options: Annotated[
        Mapping[Text, str | int | float | bool | list | dict],
        Meta(
            description="Further fields of the body of each request, such as "
            "`thinking: {type: disabled}`."
        ),
    ] = field(default_factory=dict)

    @property
    def chat_options(self) -> dict[str, str | int | float | bool]:
        """The variables of the chat template: `template_options`, and `thinking` if it is given."""
        thinking = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return {**self.template_options, **thinking}
