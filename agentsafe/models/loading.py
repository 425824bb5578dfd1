"""Load models and tokenizers from checkpoint folders, and save models as other ones were saved.

`load_model` is the one place where the folder of an adapter becomes a model: rollouts, services,
reference log-probabilities and trainings all have what it returns. Nothing is downloaded, and code
that comes with a checkpoint runs only with `trust_remote_code`.
"""

import copy
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentsafe._util.json import read_json
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.models import adapters
from agentsafe.models.checkpoint import base_folder, check, check_adapter, check_base, weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Files of a checkpoint that describe its model.
_CONFIGS = ("config.json", "generation_config.json")
#: Files of its tokenizer, of any kind, and the folder of further chat templates.
_TOKENIZER = (
    *("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    "*chat_template*",
)
#: torch's names of safetensors' dtypes for weights.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Check a checkpoint and load its tokenizer.

    Raises:
        UserError: as `checkpoint.check`, or the tokenizer is not readable.
    """
    from transformers import AutoTokenizer

    check(folder)
    quieten()
    try:
        return AutoTokenizer.from_pretrained(
            base_folder(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizers raise bare Exception for a broken file
        raise UserError(f"{folder}: cannot load the tokenizer: {one_line(error)}") from None


def load_model(
    folder: str | Path,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
    bases: "dict[Any, PreTrainedModel] | None" = None,
) -> "PreTrainedModel":
    """Check a checkpoint and load its model in evaluation mode.

    The update of an adapter's folder is merged into the weights of its base, rounded once to their
    dtype. Quantised weights stay as they are: the update is added to the outputs of their layers.

    Args:
        folder: of the checkpoint: whole weights, or an adapter that belongs to some.
        dtype: of the weights; `auto` is as saved on a GPU and float32 on a CPU.
        quantization: `none`, `int8` or `int4` (bitsandbytes, 4-bit NormalFloat).
        adapter: folder of a LoRA adapter (PEFT), added to the model without merging it.
        trust_remote_code: whether code that comes with the checkpoint may run.
        bases: keeps the base of an adapter in memory for the next adapter of that base; a call adds
            to it or takes from it. If quantised, the model that the last call returned is changed.

    Returns:
        The model: on the GPU if quantised, else on the CPU.

    Raises:
        UserError: as `checkpoint.check` and `checkpoint.check_base`, or the model type is unknown,
            or weights or adapter do not match its config, or quantisation lacks bitsandbytes or a
            GPU.
    """
    check(folder)
    quieten()
    base = base_folder(folder)
    if base != Path(folder):
        check_base(folder)
    if bases is None or base == Path(folder) or adapter is not None:
        model = _whole(base, dtype, quantization, trust_remote_code=trust_remote_code)
    else:
        key = base, dtype, quantization, trust_remote_code
        if key not in bases:
            bases.clear()
            bases[key] = _whole(*key[:3], trust_remote_code=trust_remote_code)
        model = _unchanged(bases[key], quantization)
    if base != Path(folder):
        put = adapters.merge if quantization == "none" else adapters.put_beside
        model = put(model, folder)
    return (model if adapter is None else _adapted(model, adapter)).eval()


def _unchanged(base: "PreTrainedModel", quantization: str) -> "PreTrainedModel":
    """Return a base without any adapter: itself if quantised, else a copy.

    A copy, since merging changes the weights, and subtracting an update again would leave rounding
    errors. Quantised weights do not change.
    """
    if quantization == "none":
        return copy.deepcopy(base)
    adapters.take_off(base)
    return base


def _whole(
    folder: Path, dtype: str, quantization: str, *, trust_remote_code: bool
) -> "PreTrainedModel":
    """Load whole weights."""
    import torch
    from transformers import AutoModelForCausalLM

    log.info("loading the weights of %s", folder)
    gpu = torch.cuda.is_available()
    if dtype == "auto" and not gpu:
        dtype = "float32"
    try:
        # Not a model but a pair, because of `output_loading_info`.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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
    except Exception as error:  # each model type raises its own
        if getattr(error, "errno", None) is not None:  # a fault of the machine, not the folder
            raise
        raise UserError(f"{folder}: cannot load the model: {one_line(error)}") from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: the weights lack {len(missing)} tensors of the config, first {missing[0]}"
        )
    return model


def _quantised(folder: str | Path, quantization: str) -> dict:
    """Build the arguments of `from_pretrained` that quantise the weights during loading."""
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
    """Add an adapter's weights to the model, without merging them."""
    folder = Path(adapter)
    check_adapter(folder)
    try:
        report = model.load_adapter(
            str(folder), ignore_mismatched_sizes=True, adapter_kwargs={"local_files_only": True}
        )
    except Exception as error:  # PEFT and transformers raise errors of many types
        raise adapters.misfit(folder, one_line(error)) from None
    reshaped = {name for name, *_ in report.mismatched_keys}
    # Without this check, tensors that were not loaded would silently stay random.
    if wrong := sorted({*report.missing_keys, *report.unexpected_keys, *reshaped}):
        raise adapters.misfit(
            folder,
            f"{len(wrong)} tensors are missing, left over or of another shape, first {wrong[0]}",
        )
    return model


def context(
    config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", limit: int | None
) -> int:
    """Return the model's context in tokens (prompt and answer together), at most `limit`."""
    text_config = config.get_text_config(decoder=True)
    own = getattr(text_config, "max_position_embeddings", None)  # some model types have none
    own = own or tokenizer.model_max_length
    return own if limit is None else min(limit, own)


def end_tokens(folder: str | Path, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that end a turn of a checkpoint when it is served."""
    ends: int | list[int] | None = None
    for name in _CONFIGS:  # the later one decides
        path = base_folder(folder) / name
        ends = (read_json(path) if path.is_file() else {}).get("eos_token_id", ends)
    listed = ends if isinstance(ends, list) else [ends]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def load_config(folder: str | Path) -> "PreTrainedConfig":
    """Read the config of a checkpoint.

    Raises:
        UserError: its model type is unknown.
    """
    from transformers import AutoConfig

    quieten()
    try:
        return AutoConfig.from_pretrained(base_folder(folder), local_files_only=True)
    except Exception as error:  # each model type raises its own
        raise UserError(f"{folder}: cannot read its config: {one_line(error)}") from None


def saved_dtype(folder: str | Path) -> "torch.dtype":
    """Return the dtype that a checkpoint's config gives for its weights, or float32."""
    import torch

    found = read_json(base_folder(folder) / "config.json")
    name = found.get("dtype") or found.get("torch_dtype") or "float32"
    return getattr(torch, name)


def save_as(model: "PreTrainedModel", like: str | Path, folder: str | Path) -> None:
    """Save a model as the checkpoint that it was trained from was saved.

    Args:
        model: of the same architecture.
        like: folder of that checkpoint. Each tensor gets the dtype that it has there, and its
            configs are kept as they are: a trainer changes some of their fields, and transformers
            refuses to save some generation configs that it reads.
        folder: to write into.
    """
    from transformers import GenerationConfig

    dtypes, usual = saved_dtypes(like), saved_dtype(like)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, usual))
    if model.generation_config is not None:
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    for name in _CONFIGS:
        written, kept = Path(folder, name), base_folder(like) / name
        if kept.is_file():
            shutil.copyfile(kept, written)
        else:
            written.unlink(missing_ok=True)


def copy_tokenizer(like: str | Path, folder: str | Path) -> None:
    """Copy the tokenizer of a checkpoint, chat templates included, file by file.

    Loaded and saved again it may make other tokens: transformers drops fields of its config, such
    as `legacy` of the Llama kind, which decides about blanks.
    """
    for pattern in _TOKENIZER:
        for path in base_folder(like).glob(pattern):
            if path.is_dir():
                shutil.copytree(path, Path(folder, path.name), dirs_exist_ok=True)
            else:
                shutil.copyfile(path, Path(folder, path.name))


def saved_dtypes(folder: str | Path) -> dict[str, "torch.dtype"]:
    """Return the dtype of each tensor of a checkpoint's whole weights; no tensor is read."""
    import torch
    from safetensors import safe_open

    found = {}
    for path in weights(base_folder(folder)):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found[name] = getattr(
                    torch, _DTYPES.get(file.get_slice(name).get_dtype(), ""), None
                )
    return {name: dtype for name, dtype in found.items() if dtype is not None}


def half_precision() -> bool:
    """Tell whether models compute in bfloat16 here, which needs a GPU that supports it."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def quieten_imports() -> None:
    """Turn off the bars of datasets, and what torchao warns of; call this before their import."""
    # It names its kernels for other GPUs, and torch its enums.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quieten() -> None:
    """Turn off progress bars and warnings of transformers, datasets and torchao."""
    quieten_imports()

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
