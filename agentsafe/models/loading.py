"""A checkpoint's model and tokenizer, out of its folder.

Nothing is fetched here, and code that a checkpoint brings along runs only where that was asked for.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from agentsafe._util.json import read_json
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.models.checkpoint import check, check_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint, checked first.

    Raises:
        UserError: as `check`, or it cannot be read.
    """
    from transformers import AutoTokenizer

    check(folder)
    quieten()
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizers raise bare Exception for a file that is not theirs
        raise UserError(f"{folder}: cannot load the tokenizer: {one_line(error)}") from None


def load_model(
    folder: str | Path,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """The model of a checkpoint, checked first, ready to evaluate.

    It is on the CPU, but for a quantised one, which is on the GPU.

    Args:
        folder: of the checkpoint.
        dtype: `auto` is float32 where there is no GPU, and as saved where there is one.
        quantization: `none`, `int8` or `int4`: bitsandbytes, its 4-bit NormalFloat.
        adapter: folder of a LoRA adapter (PEFT), put on the model without merging it.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        UserError: as `check`, or its kind of model is not known, or weights or adapter do not fit
            its config, or quantisation was asked for without bitsandbytes or a GPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check(folder)
    quieten()
    gpu = torch.cuda.is_available()
    if dtype == "auto" and not gpu:
        dtype = "float32"
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **_quantised(folder, quantization),
        )
    except UserError:
        raise
    except Exception as error:  # each kind of model raises its own
        if getattr(error, "errno", None) is not None:  # the machine's trouble, not the folder's
            raise
        raise UserError(f"{folder}: cannot load the model: {one_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: the weights lack {len(missing)} of the config's tensors, first {missing[0]}"
        )
    return (model if adapter is None else _adapted(model, adapter)).eval()


def _quantised(folder: str | Path, quantization: str) -> dict:
    """What `from_pretrained` takes to quantise the weights as it loads them."""
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{folder}: {quantization} needs bitsandbytes: pip install 'agentsafe[quantization]'"
        )
    if not torch.cuda.is_available():
        raise UserError(f"{folder}: {quantization} needs a GPU: write quantization: none")
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return {"quantization_config": config, "device_map": {"": 0}}


def _adapted(model: "PreTrainedModel", adapter: str | Path) -> "PreTrainedModel":
    """The model with an adapter's weights beside its own."""
    folder = Path(adapter)
    check_weights(folder / "adapter_model.safetensors")
    read_json(folder / "adapter_config.json")
    try:
        report = model.load_adapter(
            str(folder), ignore_mismatched_sizes=True, adapter_kwargs={"local_files_only": True}
        )
    except Exception as error:  # PEFT and transformers raise nearly anything
        raise UserError(f"{folder}: the adapter does not fit: {one_line(error)}") from None
    reshaped = {name for name, *_ in report.mismatched_keys}
    # What is not loaded stays as it was drawn at random, and nobody would be told.
    if odd := sorted({*report.missing_keys, *report.unexpected_keys, *reshaped}):
        raise UserError(
            f"{folder}: the adapter does not fit: {len(odd)} of its tensors are missing, left over "
            f"or of another shape, first {odd[0]}; is it of another model?"
        )
    return model


def context(
    config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", least: int | None
) -> int:
    """Tokens of prompt and answer together that a model takes, `least` where that is less."""
    text_config = config.get_text_config(decoder=True)
    own = getattr(text_config, "max_position_embeddings", None)  # some kinds have none
    own = own or tokenizer.model_max_length
    return own if least is None else min(least, own)


def load_config(folder: str | Path) -> "PreTrainedConfig":
    """The config of a checkpoint.

    Raises:
        UserError: its kind of model is not known.
    """
    from transformers import AutoConfig

    quieten()
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each kind of model raises its own
        raise UserError(f"{folder}: cannot read its config: {one_line(error)}") from None


def saved_dtype(folder: str | Path) -> "torch.dtype":
    """The type of numbers that a checkpoint's config names for its weights; else float32."""
    import torch

    found = read_json(Path(folder) / "config.json")
    name = found.get("dtype") or found.get("torch_dtype") or "float32"
    return getattr(torch, name)


def half_precision() -> bool:
    """Whether models compute in bfloat16 here: on a GPU that has it."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def quieten() -> None:
    """Leave the terminal to the caller: no bars, no advice from the libraries that load models."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
