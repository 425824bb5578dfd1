"""Describe a language model and how it is served.."""

from collections.abc import Mapping

import msgspec


class Model(msgspec.Struct, frozen=True):
    """A language model and how it is served: an entry of the config's `models`, by its names.

    Attributes:
        model: a hub id or a folder of a checkpoint; with the backend `openai`, the server's name
            of it.
        backend: `transformers`, `vllm` or `openai`.
        revision: branch, tag or commit of a hub id.
        adapter: folder of a LoRA adapter (PEFT) that is put on the model without merging it.
        dtype: of the weights: `auto` (as saved on a GPU, float32 on a CPU), `bfloat16`, `float16`
            or `float32`.
        quantization: `none`, `int8` or `int4` (bitsandbytes).
        concurrency: conversations at once, on the device or on their way to the server.
        context: tokens of prompt and answer together; None for the model's own limit.
        thinking: `enable_thinking` of the chat template; None for the template's default.
        memory_fraction: of the GPU's memory that vLLM takes.
        service: whether one process serves it to all shards that it emulates or judges for.
        trust_remote_code: whether code that comes with the checkpoint may run.
        base_url_env: environment variable that holds the server's address; None for OpenAI's own.
        api_key_env: environment variable that holds the key.
        timeout: seconds that one request may take.
        retries: of a request that was refused for now or lost, with growing pauses.
        structured: how the server can be held to given answers: `none`, `choice` (vLLM's
            `structured_outputs`) or `json_schema` (OpenAI's `response_format`).
        omit: of `temperature`, `seed`, `stop`, those that the server does not take.
        options: further fields of the request's body.
    """

    model: str
    backend: str = "transformers"
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    concurrency: int = 64
    context: int | None = None
    thinking: bool | None = None
    memory_fraction: float = 0.9
    service: bool = False
    trust_remote_code: bool = False
    base_url_env: str | None = None
    api_key_env: str | None = None
    timeout: float = 600.0
    retries: int = 8
    structured: str = "none"
    omit: tuple[str, ...] = ()
    options: Mapping[str, str | int | float | bool] = {}
