"""Say what this machine can run, and try it with a small model: `make doctor`.

    python -m agentsafe.runs.doctor [--network] [--int4]

The first thing to run on a new machine or cluster node. Nothing is downloaded: the model is a
random one of half a million parameters. It plays, trains a step and takes an adapter through the
code of the jobs, on the GPU if there is one, and must agree with itself on the CPU.

Not covered: several GPUs at once, and speed, which `make calibrate` measures. No GPU has run it so
far.
"""

import argparse
import asyncio
import importlib.util
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentsafe._util.format import memory_size
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.types import Message, Sampling
from agentsafe.models import loading
from agentsafe.runs.calibration import processor
from agentsafe.runs.workload import Lengths
from agentsafe.training.config import Lora, Settings

if TYPE_CHECKING:
    import torch

STATES = OK, WARNING, FAILURE = "ok", "warning", "failure"
#: Packages that all jobs with a model need, and the extra of agentsafe that has them.
_NEEDED = {"torch": "train", "transformers": "train", "trl": "train", "peft": "train"}
#: Those that only some settings need.
_OPTIONAL = {
    "openai": ("api", "models on servers"),
    "bitsandbytes": ("quantization", "quantization: int4 and int8"),
    "torchao": ("optimizers", "optimizer: adamw_torch_8bit"),
    "vllm": ("vllm", "backend: vllm, and make serve"),
}
_LEAST_DISK, _MUCH_DISK = 1e9, 50e9
#: Flags of processors that multiply in bfloat16, x86 and Arm.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_DRIVER = Path("/proc/driver/nvidia/version")
_TEXT = "the agent reads a file, asks the user, and sends the money to the right account"
_PROMPTS = ("read the file", "ask the user", "send the money", "the right account")
#: Largest difference of logits by rounding in float32, in another order of sums.
_ROUNDING = 2e-3
#: The same of a loss, in float32 and in bfloat16.
_LOSS, _HALF_LOSS = 1e-3, 2e-2
#: Least correlation of the logits of 4-bit weights with those of the weights themselves.
_ALIKE = 0.9


class Finding(NamedTuple):
    """Report one check: one of `STATES`, its subject, the detail, and how to fix it."""

    state: str
    subject: str
    detail: str
    fix: str = ""


def check_machine(*, network: bool = False) -> Iterator[Finding]:
    """Look at what is installed and at the machine, without a model.

    Args:
        network: whether to ask the hub.
    """
    yield from check_packages()
    if importlib.util.find_spec("torch") is None:
        return
    yield from check_gpus()
    yield check_memory()
    yield check_bfloat16()
    yield check_attention(_device())
    yield from check_disk()
    if network:
        yield check_hub()


def check_packages() -> Iterator[Finding]:
    """Find the packages of agentsafe's extras."""
    for package, extra in _NEEDED.items():
        found, fix = _version(package), f"pip install 'agentsafe[{extra}]'"
        yield Finding(OK, package, found) if found else Finding(FAILURE, package, "missing", fix)
    for package, (extra, use) in _OPTIONAL.items():
        found, fix = _version(package), f"pip install 'agentsafe[{extra}]'"
        missing = Finding(WARNING, package, f"not installed; needed for {use}", fix)
        yield Finding(OK, package, found) if found else missing


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_gpus() -> Iterator[Finding]:
    """Look for GPUs that torch can use, and for their free memory."""
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu(torch.version.cuda, driver=_DRIVER.exists())
        return
    for number in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield gpu_memory(f"GPU {number}", name, free, whole)


def _no_gpu(cuda: str | None, *, driver: bool) -> Finding:
    """Say why torch sees no GPU: there is none, or something hides it."""
    if not driver:
        return Finding(
            WARNING,
            "GPU",
            "none here, and no driver: the miniature needs none, language models do",
        )
    if cuda is None:
        fix = "install torch for CUDA: https://pytorch.org/get-started/locally"
        return Finding(FAILURE, "GPU", "there is a driver, but this torch is for CPUs alone", fix)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    fix = "unset CUDA_VISIBLE_DEVICES" if hidden else f"update the driver for CUDA {cuda}, or "
    fix += "" if hidden else "request a GPU from the scheduler"
    return Finding(FAILURE, "GPU", "there is a driver, but torch cannot use it", fix)


def gpu_memory(subject: str, name: str, free: float, whole: float) -> Finding:
    """Say how much of a GPU's memory is free; another process may have it."""
    detail = f"{name}, {memory_size(free)} of {memory_size(whole)} free"
    if free >= 0.9 * whole:
        return Finding(OK, subject, detail)
    return Finding(WARNING, subject, detail, "end the processes that nvidia-smi lists on it")


def check_memory() -> Finding:
    """Say how many processors and how much main memory there are, in use or not."""
    page = os.sysconf("SC_PAGE_SIZE")
    whole, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    detail = f"{os.cpu_count()} processors, {memory_size(whole)} of main memory, "
    detail += f"of which {memory_size(free)} are unused"
    return Finding(OK, "machine", detail)


def check_bfloat16(flags: Iterable[str] | None = None) -> Finding:
    """Tell whether bfloat16 is computed by instructions of the device, not emulated.

    Args:
        flags: of the processor; None reads this machine's.
    """
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Finding(OK, "bfloat16", "this GPU computes in it")
        fix = "write dtype: float16 for models that play; training uses float32 here"
        return Finding(WARNING, "bfloat16", "this GPU emulates it, which is slow", fix)
    found = sorted(_BFLOAT16 & set(_flags() if flags is None else flags))
    if found:
        return Finding(OK, "bfloat16", f"{processor()} has {', '.join(found)}")
    return Finding(
        OK, "bfloat16", f"{processor()} has no instructions for it: models are float32, the default"
    )


def _flags() -> list[str]:
    """Return the flags of the processor: `flags` of x86, `Features` of Arm."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return value.split()
    return []


def check_attention(device: str) -> Finding:
    """Try torch's flash attention, which keeps no scores of all pairs of tokens."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    heads = torch.randn(1, 4, 64, 64, dtype=dtype, device=device)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    except RuntimeError as error:
        fix = "use a GPU of compute capability 8.0 or newer; others take more memory and time"
        return Finding(WARNING, "flash attention", one_line(error), fix)
    return Finding(OK, "flash attention", f"torch's kernel works on {device}")


def check_disk() -> Iterator[Finding]:
    """Compare the free space of the results' and the hub's folder with what runs take."""
    places = {"disk of results": Path("results")}
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants

        places["disk of the hub's cache"] = Path(constants.HF_HUB_CACHE)
    for subject, folder in places.items():
        folder = folder.absolute()
        there = next(each for each in (folder, *folder.parents) if each.exists())
        yield disk_space(subject, folder, shutil.disk_usage(there).free)


def disk_space(subject: str, folder: Path, free: float) -> Finding:
    """Judge the free bytes of a folder's disk."""
    detail = f"{memory_size(free)} free in {folder}"
    fix = "make it a link to a folder on a larger disk"
    if "hub" in subject:
        fix = "set HF_HOME to a folder on a larger disk"
    if free < _LEAST_DISK:
        return Finding(FAILURE, subject, detail, fix)
    return (
        Finding(OK, subject, detail)
        if free >= _MUCH_DISK
        else Finding(
            WARNING, subject, f"{detail}: the miniature fits, an 8B model and its run may not", fix
        )
    )


def check_hub() -> Finding:
    """Ask the hub for its own page of a public model."""
    from huggingface_hub import HfApi, constants, get_token

    fix = "use a node with a network, set HTTPS_PROXY, or HF_ENDPOINT to a mirror"
    if constants.HF_HUB_OFFLINE:
        return Finding(WARNING, "hub", "HF_HUB_OFFLINE is set", "unset it to download models")
    try:
        HfApi().model_info("Qwen/Qwen2.5-0.5B-Instruct", timeout=10)
    except Exception as error:  # each kind of connection failure has its own type
        reason = one_line(error.__cause__ or error)
        return Finding(WARNING, "hub", f"{constants.ENDPOINT} does not answer: {reason}", fix)
    token = "with a token" if get_token() else "without a token: gated models need HF_TOKEN"
    return Finding(OK, "hub", f"{constants.ENDPOINT} answers, {token}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_model(folder: Path, device: str, *, int4: bool = False) -> Iterator[Finding]:
    """Let a small model play, train and take an adapter, and compare with the CPU.

    Args:
        folder: to write the model and its adapter into.
        device: `cuda` or `cpu`.
        int4: whether to load it in 4 bits, too.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "generation": lambda: check_generation(folder / "model", device),
        "training": lambda: check_training(folder / "model"),
        "adapter": lambda: check_adapter(folder, device),
    }
    if int4:
        checks["int4"] = lambda: check_int4(folder / "model")
    warnings.simplefilter("ignore", FutureWarning)  # of transformers' own options, in TRL
    loading.quieten_imports()
    write_model(folder / "model")
    for subject, check in checks.items():
        try:
            yield check()
        except UserError as error:  # the line has the fix
            yield Finding(FAILURE, subject, str(error).replace(f"{folder}{os.sep}", ""))
        except Exception as error:  # whatever a driver or a kernel raises
            name = f"{type(error).__name__}: {one_line(error)}"
            yield Finding(FAILURE, subject, name, "see the versions of torch and of the driver")


def write_model(folder: Path) -> None:
    """Write a random Qwen3 of half a million parameters with a tokenizer of a few words."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from agentsafe.miniature.tokenizer import CONTEXT, train_tokenizer

    loading.quieten()
    tokenizer = train_tokenizer([_TEXT, *_PROMPTS])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_generation(folder: Path, device: str) -> Finding:
    """Compare texts on the device, in one batch, with transformers' own on the CPU, in float32."""
    from agentsafe.inference.hf import LocalChat
    from agentsafe.inference.stop_strings import render_prompt

    model, tokenizer = loading.load_model(folder, dtype="float32"), loading.load_tokenizer(folder)
    asked = [[Message(role="user", content=text)] for text in _PROMPTS]
    expected = []
    for messages in asked:
        prompt = tokenizer(
            render_prompt(tokenizer, messages, {}), add_special_tokens=False, return_tensors="pt"
        )
        made = model.generate(**prompt, max_new_tokens=16, do_sample=False)
        expected.append(made[0, prompt["input_ids"].shape[1] :])
    texts = [tokenizer.decode(each, skip_special_tokens=True) for each in expected]
    chat = LocalChat(model.to(device), tokenizer, max_batch=len(asked), device=device)

    async def play() -> list[str]:
        sampling = Sampling(max_tokens=16)
        answers = await asyncio.gather(*(chat.complete(each, sampling) for each in asked))
        return [answer.text for answer in answers]

    found = asyncio.run(play())
    same = sum(one == other for one, other in zip(texts, found, strict=True))
    detail = f"{same} of {len(asked)} texts on {device} are transformers' own on the CPU"
    if same == len(asked):
        return Finding(OK, "generation", detail)
    if same >= len(asked) / 2:  # a tie of two tokens may be decided by rounding
        return Finding(WARNING, "generation", detail, "run it again; if it stays, report it")
    fix = "the device computes something else: check its driver and torch's version"
    return Finding(FAILURE, "generation", detail, fix)


def check_training(folder: Path) -> Finding:
    """Train steps of DPO on the device; the first loss is ln 2, that of an untrained policy."""
    from agentsafe.runs.measure import training

    settings = Settings(batch_size=2, lora=Lora(r=4, alpha=8), sft_weight=0)
    found = training(folder, settings, Lengths(96, 32), rollouts=4, seconds=10)
    detail = f"the first DPO loss is {found.first_loss:.4f}, and ln 2 is {math.log(2):.4f}"
    near = abs(found.first_loss - math.log(2)) <= (
        _HALF_LOSS if loading.half_precision() else _LOSS
    )
    fix = "policy and reference disagree here: check the versions of torch, trl and peft"
    return Finding(OK, "training", detail) if near else Finding(FAILURE, "training", detail, fix)


def check_adapter(folder: Path, device: str) -> Finding:
    """Put a random adapter on the model, beside its weights and merged into them."""
    import torch
    from peft import get_peft_model

    from agentsafe.models import adapters
    from agentsafe.training.lora import lora_config

    def load(**options: Any) -> Any:
        return loading.load_model(folder / "model", dtype="float32", **options)

    torch.manual_seed(0)
    model = load()
    adapted: Any = get_peft_model(model, lora_config(Lora(r=4), model))
    for name, each in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    base = logits(load(), device)
    beside = logits(load(adapter=folder / "adapter"), device)
    merged = logits(adapters.merge(load(), folder / "adapter"), device)
    apart = (beside - merged).abs().max().item()
    moved = (beside - base).abs().max().item()
    detail = (
        f"it moves logits by {moved:.1e}, and merged into the weights by the same to {apart:.1e}"
    )
    if apart <= _ROUNDING < moved:
        return Finding(OK, "adapter", detail)
    fix = "check the versions of peft and transformers"
    return Finding(FAILURE, "adapter", detail, fix)


def check_int4(folder: Path) -> Finding:
    """Load the model in 4 bits, and compare its logits with those of its weights."""
    import torch

    exact = logits(loading.load_model(folder, dtype="float32"), _device())
    found = logits(loading.load_model(folder, quantization="int4"), None)
    alike = torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1].item()
    detail = f"the logits of 4-bit weights correlate by {alike:.3f} with those of the weights"
    fix = "check the versions of bitsandbytes and of the driver"
    return Finding(OK, "int4", detail) if alike >= _ALIKE else Finding(FAILURE, "int4", detail, fix)


def logits(model: Any, device: str | None) -> "torch.Tensor":
    """Compute the logits of some tokens, on the CPU in float32; None leaves the model in place."""
    import torch

    model = model if device is None else model.to(device)
    tokens = torch.arange(32, device=model.device)[None]
    with torch.inference_mode():
        return model(input_ids=tokens).logits.float().cpu()


def report(findings: Iterable[Finding]) -> int:
    """Print findings as they come, and return the exit status: 1 with a failure."""
    failed = 0
    for each in findings:
        print(f"{each.state:8} {each.subject}: {each.detail}", flush=True)
        if each.fix:
            print(f"{'':8} fix: {each.fix}", flush=True)
        failed += each.state == FAILURE
    print(f"{failed} failed." if failed else "Nothing failed.")
    return min(failed, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the machine and then a small model on it; return the exit status."""
    parser = argparse.ArgumentParser(prog="make doctor")
    parser.add_argument("--network", action="store_true", help="ask the hub, too")
    parser.add_argument("--int4", action="store_true", help="load the model in 4 bits, too")
    asked = parser.parse_args(arguments)

    def findings() -> Iterator[Finding]:
        broken = False
        for each in check_machine(network=asked.network):
            broken = broken or (each.state == FAILURE and each.subject in _NEEDED)
            yield each
        if not broken:
            with tempfile.TemporaryDirectory() as folder:
                yield from check_model(Path(folder), _device(), int4=asked.int4)

    return report(findings())


if __name__ == "__main__":
    sys.exit(main())
