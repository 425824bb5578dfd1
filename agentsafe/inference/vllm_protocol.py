"""What vLLM is asked and what it answers: plain dictionaries in, the project's own types out.

Written against the source of vLLM 0.30.0 and, for 4 bits, of vllm-bnb-plugin 0.0.3. vLLM itself is
imported by `parameters` only.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsafe._util.json import read_json
from agentsafe.errors import UserError
from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.types import Completion, Sampling
from agentsafe.models.checkpoint import check_weights
from agentsafe.models.config import Model

#: Ranks of LoRA adapters that vLLM can be made ready for, of any up to that.
_RANKS = 8, 16, 32, 64, 128, 256, 320, 512


def engine_arguments(
    name: str, model: Model, folder: str, adapter: str | None = None
) -> dict[str, Any]:
    """What `AsyncEngineArgs` gets.

    `dtype: auto` is vLLM's: as saved, but 16 bits for 32. Without a `context`, it is the model's
    own limit, or what the GPU's memory holds, where that is less. `int4` is bitsandbytes' 4-bit
    NormalFloat, with its constants quantised, too.

    Raises:
        UserError: vLLM cannot do what the entry asks for, or the adapter is broken.
    """
    if model.quantization == "int8":
        raise UserError(
            f"models.{name}.quantization: vLLM quantises to 4 bits only, while it loads a model: "
            "write int4, or backend: transformers"
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
    """The rank that vLLM must be ready for."""
    check_weights(adapter / "adapter_model.safetensors")
    config = read_json(adapter / "adapter_config.json")
    try:
        rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
        return next(each for each in _RANKS if rank <= each)
    except (KeyError, TypeError, StopIteration):
        raise UserError(
            f"models.{name}.adapter: {adapter}/adapter_config.json has no rank up to {_RANKS[-1]}, "
            "which is the most that vLLM takes: write backend: transformers"
        ) from None


def sampling_arguments(name: str, sampling: Sampling, room: int) -> dict[str, Any]:
    """What `SamplingParams` gets for a turn of at most `room` tokens.

    Raises:
        UserError: vLLM does not draw at such a temperature.
    """
    if sampling.temperature and not 0.01 <= sampling.temperature <= 2:
        raise UserError(
            f"models.{name}: vLLM draws at temperatures from 0.01 to 2, not {sampling.temperature}"
        )
    arguments = {
        "temperature": sampling.temperature,
        "max_tokens": room,
        "seed": sampling.seed % 2**63,  # it is signed, of 64 bits, and -1 means none
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
    }
    if sampling.choices:
        arguments["structured_outputs"] = {"choice": list(sampling.choices)}
    return arguments


def scoring_arguments(tokens: Sequence[int]) -> dict[str, Any]:
    """What `SamplingParams` gets to tell how likely each of some tokens comes next."""
    return {
        "temperature": 0.0,
        "max_tokens": 1,
        "logprob_token_ids": list(tokens),
        "detokenize": False,
    }


def parameters(arguments: dict[str, Any]):
    """The `SamplingParams` of such a dictionary; with them, an output comes once, at its end."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    held = arguments.get("structured_outputs")
    structured = {"structured_outputs": StructuredOutputsParams(**held)} if held else {}
    return SamplingParams(**arguments | structured, output_kind=RequestOutputKind.FINAL_ONLY)


def completion(tokenizer, output, prompt_tokens: int, sampling: Sampling, room: int) -> Completion:
    """A turn out of a `CompletionOutput`, its text made as the other backends make it.

    Raises:
        RuntimeError: vLLM gave the turn up.
    """
    tokens, reason = list(output.token_ids), output.finish_reason
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM gave a turn up: {reason}")
    if reason == "length" and room < sampling.max_tokens:
        reason = "context"
    by_token = reason == "stop" and not isinstance(output.stop_reason, str)
    text = tokenizer.decode(
        tokens[:-1] if by_token else tokens,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return Completion(cut_after(text, sampling.stop), reason, prompt_tokens, len(tokens))


def shares(output, tokens: Sequence[int]) -> tuple[float, ...]:
    """The probability of each of some tokens, among them, out of a `CompletionOutput`.

    Raises:
        UserError: they are not numbers.
    """
    logs = [output.logprobs[0][token].logprob for token in tokens]
    weights = [math.exp(each - max(logs)) for each in logs]
    if math.isnan(sum(weights)):
        raise UserError(
            "the checkpoint's logits are not numbers, its weights are broken; make it again"
        )
    return tuple(each / sum(weights) for each in weights)
