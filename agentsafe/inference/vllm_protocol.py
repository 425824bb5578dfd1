"""Translate between the project's types and vLLM's arguments and outputs.

Written against the source of vLLM 0.30.0 and, for 4 bits, of vllm-bnb-plugin 0.0.3. Only
`parameters` imports vLLM itself.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentsafe._util.json import read_json
from agentsafe.errors import ServerTrouble, UserError
from agentsafe.inference.served import served
from agentsafe.inference.stop_strings import cut_after, decode_turn
from agentsafe.inference.thinking import OPEN, first_stop, split_thinking
from agentsafe.inference.types import Completion, Sampling
from agentsafe.models.checkpoint import (
    ADAPTER_CONFIG,
    base_folder,
    check,
    check_adapter,
    check_base,
)
from agentsafe.models.config import Model

#: Values that vLLM accepts as `max_lora_rank`.
RANKS = 8, 16, 32, 64, 128, 256, 320, 512


class Prompt(NamedTuple):
    """A prompt's tokens, and whether it opens private reasoning."""

    tokens: list[int]
    thinking: bool = False


def base_and_adapter(model: Model, folder: str) -> tuple[str, str | None]:
    """Return the folders of a checkpoint's whole weights and of the adapter on them, if any.

    Args:
        model: the entry that says how it is served.
        folder: of the checkpoint.

    Raises:
        UserError: as `checkpoint.check` and `checkpoint.check_base`.
    """
    base = base_folder(folder)
    if base == Path(folder):
        return folder, model.adapter
    check(folder)
    check_base(folder)
    return str(base), folder


def engine_arguments(
    name: str, model: Model, folder: str, adapter: str | None = None
) -> dict[str, Any]:
    """Build the arguments of `AsyncEngineArgs`.

    `dtype: auto` means vLLM's: as saved, but 16 bits for 32. Without a `context` vLLM takes the
    model's own limit, or less where the GPU's memory does not hold that. `int4` is bitsandbytes'
    4-bit NormalFloat with double quantisation.

    Raises:
        UserError: vLLM does not support the entry's settings, or the adapter is broken.
    """
    if model.quantization == "int8":
        raise UserError(
            f"models.{name}.quantization: vLLM quantises to 4 bits only as it loads a model: write "
            "int4, or backend: transformers"
        )
    four_bits = model.quantization == "int4"
    arguments = {
        "model": folder,
        "dtype": model.dtype,
        "quantization": "bitsandbytes" if four_bits else None,
        "load_format": "bitsandbytes" if four_bits else "safetensors",  # never pickled weights
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.context or -1,
        "max_num_seqs": model.concurrency,
        "gpu_memory_utilization": model.memory_fraction,
        "enable_prefix_caching": True,
        "seed": 0,
        "disable_log_stats": True,
    }
    if adapter is not None:
        rank = _rank(name, Path(adapter))
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    return arguments


def _rank(name: str, adapter: Path) -> int:
    """Return the smallest `max_lora_rank` that covers an adapter's ranks."""
    check_adapter(adapter)
    config = read_json(adapter / ADAPTER_CONFIG)
    try:
        found = max_lora_rank(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
    except (KeyError, TypeError):
        found = None
    if found is None:
        raise UserError(
            f"models.{name}.adapter: {adapter}/adapter_config.json has no rank up to {RANKS[-1]}, "
            "the most that vLLM supports: write backend: transformers"
        )
    return found


def max_lora_rank(rank: int) -> int | None:
    """Return the smallest `max_lora_rank` that vLLM accepts for an adapter's rank, if any."""
    return next((each for each in RANKS if rank <= each), None)


def sampling_arguments(name: str, sampling: Sampling, room: int) -> dict[str, Any]:
    """Build the arguments of `SamplingParams` for a turn of at most `room` tokens.

    Raises:
        UserError: the temperature is neither 0 nor between 0.01 and 2.
    """
    if sampling.temperature and not 0.01 <= sampling.temperature <= 2:
        raise UserError(
            f"models.{name}: vLLM samples at temperatures from 0.01 to 2, not "
            f"{sampling.temperature}"
        )
    arguments = {
        "temperature": sampling.temperature,
        "max_tokens": room,
        "seed": sampling.seed % 2**63,  # a signed 64-bit number; -1 means no seed
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
    }
    if sampling.choices:
        arguments["structured_outputs"] = {"choice": list(sampling.choices)}
    return arguments


def scoring_arguments(tokens: Sequence[int]) -> dict[str, Any]:
    """Build the arguments of `SamplingParams` for the next token's log-probabilities."""
    return {
        "temperature": 0.0,
        "max_tokens": 1,
        "logprob_token_ids": list(tokens),
        "detokenize": False,
    }


def parameters(arguments: dict[str, Any]):
    """Turn such arguments into `SamplingParams` that return one output at the end."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    choices = arguments.get("structured_outputs")
    structured = {"structured_outputs": StructuredOutputsParams(**choices)} if choices else {}
    return SamplingParams(**arguments | structured, output_kind=RequestOutputKind.FINAL_ONLY)


def completion(
    tokenizer, founds: Sequence[Any], prompt: Prompt, sampling: Sampling, room: int
) -> Completion:
    """Read a turn from its `RequestOutput`s; its text is decoded as in the other backends.

    Each output but the first continues the one before, which a stop string ended inside private
    reasoning. Such a turn has the stop reason `length`: it has not ended.

    Raises:
        ServerTrouble: vLLM aborted the turn.
    """
    output = founds[-1].outputs[0]
    reason = output.finish_reason
    if reason not in ("stop", "length"):
        raise ServerTrouble(f"vLLM aborted a turn: {reason}")
    by_string = reason == "stop" and isinstance(output.stop_reason, str)
    tokens = [token for found in founds for token in found.outputs[0].token_ids]
    text = decode_turn(tokenizer, tokens[:-1] if reason == "stop" and not by_string else tokens)
    if prompt.thinking and not sampling.choices:
        text = OPEN + text
    if by_string and first_stop(text, sampling.stop) is None:
        reason = "length"
    if reason == "length" and room < sampling.max_tokens:
        reason = "context"
    _, thought = split_thinking(text)
    thought_tokens = tokenizer(thought, add_special_tokens=False)["input_ids"] if thought else ()
    return Completion(
        cut_after(text, sampling.stop),
        reason,
        len(prompt.tokens),
        len(tokens),
        cached_tokens=founds[0].num_cached_tokens or 0,
        reasoning_tokens=min(len(thought_tokens), len(tokens)),
        served=served(prompt.tokens, tokens),
    )


def choice_probabilities(output, tokens: Sequence[int]) -> tuple[float, ...]:
    """Read the probabilities of `tokens`, normalised to sum to 1, from a `CompletionOutput`.

    Raises:
        UserError: they are NaN.
    """
    logs = [output.logprobs[0][token].logprob for token in tokens]
    weights = [math.exp(each - max(logs)) for each in logs]
    if math.isnan(sum(weights)):
        raise UserError("the checkpoint's logits are NaN, so its weights are broken: make it again")
    return tuple(each / sum(weights) for each in weights)
