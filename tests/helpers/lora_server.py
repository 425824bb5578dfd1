"""A server of a base and its LoRA adapters, with vLLM's endpoints to load and unload them.

Statuses and messages are those of vLLM 0.30.0. The adapters are PEFT's, on transformers.
"""

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open

from agentsafe.inference.types import Scorer
from tests.helpers.chat_server import ChatServer, Reply, refusal, running

_LETTERS = "abcdefghij"


def write_adapter(
    base: Path,
    folder: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    layers: str = r".*\.(q_proj|down_proj)",
) -> Path:
    """Write a LoRA adapter that changes what the base says, of the layers that PEFT finds so."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank, lora_alpha=8 * rank, target_modules=layers, init_lora_weights=False
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, settings).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


class LoraServer(ChatServer):
    """A server that loads adapters.

    Attributes:
        max_rank: `--max-lora-rank`; None without `--enable-lora`.
        at_runtime: `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.
        aliases: further names of the base.
        root: of the base, as it is listed.
        sees: tells whether the server can read a folder.
        ignores: a kind of layers that it does not apply adapters to, such as `q_proj`.
        busy: requests to load that it still refuses for now.
        loaded: names of adapters, in the order in which they were loaded.
        unloaded: likewise.
        parts: names of parts of adapters that were loaded to see their effect.
    """

    def __init__(self, base: Path, play: Callable[[Path | None], Scorer], key: str | None):
        super().__init__(None, str(base), key, lambda identity, attempt: None, lambda body: None)
        self.play = play
        self.base = play(None)
        self.max_rank: int | None = 16
        self.at_runtime = True
        self.aliases: list[str] = []
        self.root = str(base)
        self.sees: Callable[[str], bool] = lambda path: True
        self.ignores: str | None = None
        self.busy = 0
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.parts: list[str] = []
        self._adapters: dict[str, tuple[str, Scorer]] = {}
        self._played: dict[str, Scorer] = {}  # by content, so that loading again costs nothing

    def restart(self) -> None:
        """Forget all adapters, as a server that starts again has."""
        self._adapters.clear()

    def models(self):
        served = dict.fromkeys([self.name, *self.aliases], self.base)
        return served | {name: chat for name, (_, chat) in self._adapters.items()}

    def cards(self):
        bases = [
            {"id": name, "object": "model", "root": self.root, "parent": None, **self.listed}
            for name in (self.name, *self.aliases)
        ]
        return bases + [
            {"id": name, "object": "model", "root": path, "parent": self.name}
            for name, (path, _) in self._adapters.items()
        ]

    def likeliest(self, body: dict[str, Any]) -> Reply:
        """Answer with log-probabilities of the next token: those of a few letters."""
        choosing = self.models()[body["model"]].choose(body["messages"], _LETTERS)
        found = asyncio.run_coroutine_threadsafe(choosing, self.loop).result()
        top = [
            {"token": letter, "logprob": math.log(probability)}
            for letter, probability in zip(_LETTERS, found.probabilities, strict=True)
        ]
        return Reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})

    def post(self, path: str, body: dict[str, Any]) -> Reply | None:
        if not self.at_runtime:
            return Reply(404, {"detail": "Not Found"})
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            return self._unload(body["lora_name"])
        return None

    def _load(self, name: str, path: str) -> Reply:
        if self.busy:
            self.busy -= 1
            return refusal(503, "The server is starting")
        if name in self._adapters:
            again = "If you want to load the adapter in place, set 'load_inplace' to True."
            return refusal(400, f"The lora adapter '{name}' has already been loaded. {again}")
        if self.max_rank is None:
            return _failed("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        config = Path(path, "adapter_config.json")
        if not self.sees(path) or not config.is_file():
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_rank:
            return _failed(f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        if not Path(path, "adapter_model.safetensors").is_file():
            return _failed("<path> doesn't contain tensors")
        self._adapters[name] = path, self._playing(Path(path))
        (self.parts if ".effect-" in name else self.loaded).append(name)
        return Reply(200, f"Success: LoRA adapter '{name}' added successfully.")

    def _playing(self, folder: Path) -> Scorer:
        """Return what plays an adapter: the base where it is of ignored layers alone."""
        weights = folder / "adapter_model.safetensors"
        if self.ignores is not None:
            with safe_open(weights, "np") as file:
                if all(f".{self.ignores}." in name for name in file.keys()):  # noqa: SIM118
                    return self.base
        content = (folder / "adapter_config.json").read_bytes() + weights.read_bytes()
        digest = sha256(content).hexdigest()
        if digest not in self._played:
            self._played[digest] = self.play(folder)
        return self._played[digest]

    def _unload(self, name: str) -> Reply:
        if name not in self._adapters:
            return refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self._adapters[name]
        if name not in self.parts:
            self.unloaded.append(name)
        return Reply(200, f"Success: LoRA adapter '{name}' removed successfully.")


def _failed(why: str) -> Reply:
    """Answer as where a worker of vLLM's engine fails."""
    seen = f"Worker failed with error '{why}', please check the stack trace above"
    return refusal(500, f"Call to add_lora method failed: {seen} for the root cause")


@contextmanager
def serve_base(base: Path, *, key: str | None = None):
    """Serve a base and its adapters until the block ends; yields the `LoraServer`."""
    from agentsafe.inference import hf

    def play(adapter: Path | None) -> Scorer:
        return hf.load(base, max_batch=16, threads=1, dtype="float32", adapter=adapter)

    with running(LoraServer(base, play, key)) as server:
        yield server
