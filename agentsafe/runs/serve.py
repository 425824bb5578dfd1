"""Print the command that starts vLLM's server for a model of a config, or start it.

    python -m agentsafe.runs.serve config/mine.yaml NAME [--run | --sbatch] [-- further arguments]

The server plays the model, and all checkpoints that the run trains from it, as the jobs expect: at
one revision, without the sampling defaults of the model's own files, and without parsers, which
would take thoughts and tool calls out of the text.

vLLM 0.30.0 takes such a command; the project's tests do not run it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.experiment.validate import checked
from agentsafe.inference.openai_protocol import is_address
from agentsafe.inference.vllm_protocol import max_lora_rank
from agentsafe.models import checkpoint, hub
from agentsafe.models.config import Model

_SBATCH = Path("workflow/profiles/slurm/serve.sh")
_LOCAL = "http://localhost:8000/v1"  # of vLLM where the address says nothing else
#: Most adapters in one batch: each takes room on the GPU as large as the largest one.
_MOST_LORAS = 8
#: Most adapters in main memory.
_MOST_CPU_LORAS = 32


def servable(config: Mapping[str, Any]) -> list[str]:
    """List the models of a config that servers of one's own play."""
    return [
        name
        for name in grid.models(config)
        if config["models"][name]["backend"] == "openai" and config["models"][name]["base_url_env"]
    ]


def serve_command(
    config: Mapping[str, Any], name: str, commit: str | None, url: str, *, public: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Build the command of a server.

    Args:
        config: the checked config.
        name: of the model in the config's `models`, one of `servable`.
        commit: of the model on the hub; None for a folder.
        url: the server's address, as the jobs know it.
        public: other machines may reach the server.

    Returns:
        Environment variables, and the words of the command.
    """
    model = msgspec.convert(config["models"][name], Model)
    address = urlsplit(url)
    names = [model.model, *([f"{model.model}@{commit}"] if commit else [])]
    words = ["vllm", "serve", model.model, "--served-model-name", *names]
    words += ["--revision", commit] if commit else []
    words += ["--dtype", model.dtype] if model.dtype != "auto" else []
    if model.quantization == "int4":
        words += ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    else:
        words += ["--load-format", "safetensors"]
    words += ["--max-model-len", str(model.context or "auto")]
    words += ["--gpu-memory-utilization", f"{model.memory_fraction:g}", "--enable-prefix-caching"]
    words += ["--generation-config", "vllm"]
    words += ["--trust-remote-code"] if model.trust_remote_code else []
    trained = sum(lineage.source == name for lineage in grid.lineages(config))
    if model.lora and trained:
        rank = max_lora_rank(grid.adapter_rank(config, name))
        words += ["--enable-lora", "--max-lora-rank", str(rank)]
        words += ["--max-loras", str(min(trained, _MOST_LORAS))]
        words += ["--max-cpu-loras", str(min(trained, _MOST_CPU_LORAS))]
    words += ["--host", "0.0.0.0" if public else "127.0.0.1"]
    words += ["--port", str(address.port or (443 if address.scheme == "https" else 80))]
    variables = {"VLLM_NO_USAGE_STATS": "1"}
    if model.lora and trained:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    return variables, words


def as_shell(variables: Mapping[str, str], words: Sequence[str], key_variable: str | None) -> str:
    """Write a command for a shell, an option a line; the key stays in its variable."""
    before = [f"{name}={value}" for name, value in variables.items()]
    before += [f'VLLM_API_KEY="${key_variable}"'] if key_variable else []
    lines = [" ".join([*before, "vllm", "serve", shlex.quote(words[2])])]
    for word in words[3:]:
        if word.startswith("--"):
            lines.append(f"  {shlex.quote(word)}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the command of a server; start it with `--run`, or through SLURM with `--sbatch`.

    Raises:
        UserError: there is no such model, no server of one's own plays it, or its files or the
            program are missing.
    """
    parser = argparse.ArgumentParser(prog="make serve")
    parser.add_argument("config")
    parser.add_argument("model", nargs="?")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="start the server here")
    how.add_argument("--sbatch", action="store_true", help="start it as a SLURM job")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given.index("--") if "--" in given else len(given)
    asked = parser.parse_args(given[:own])
    config = checked(yaml.safe_load(Path(asked.config).read_text(encoding="utf-8")))
    name = _chosen(config, asked.model)
    model = msgspec.convert(config["models"][name], Model)
    url = _address(name, str(model.base_url_env))
    host = urlsplit(url).hostname or "localhost"
    public = asked.sbatch or host not in ("localhost", "127.0.0.1", "::1")
    commit = None
    checkpoint.check_whole(model.model)
    if not Path(model.model).is_dir():
        commit = hub.download(name, model, ["config.json"]).name
    variables, words = serve_command(config, name, commit, url, public=public)
    words += given[own + 1 :]
    print(as_shell(variables, words, model.api_key_env))
    if public and model.api_key_env is None:
        print(
            "note: everyone who reaches this port can use the server, and have it read folders: "
            f"set 'models.{name}.api_key_env'",
            file=sys.stderr,
        )
    if asked.run or asked.sbatch:
        if model.api_key_env:
            variables["VLLM_API_KEY"] = os.environ.get(model.api_key_env, "")
        _start(words, {**os.environ, **variables}, slurm=asked.sbatch)


def _chosen(config: Mapping[str, Any], name: str | None) -> str:
    """Return the model to serve: the named one, or the only one."""
    known = servable(config)
    if name is None and len(known) == 1:
        return known[0]
    if name in known:
        return name
    none = "no model of the config has backend: openai and base_url_env"
    there = f"write one of {', '.join(known)}" if known else none
    raise UserError(f"MODEL: {name or 'none'} is not a model on a server of your own: {there}")


def _address(name: str, variable: str) -> str:
    """Return the server's address from its variable; vLLM's own where that is not set."""
    url = os.environ.get(variable, "").strip() or _LOCAL
    if not is_address(url):
        raise UserError(
            f"models.{name}.base_url_env: {variable} is not a server's address: set it to one like "
            f"{_LOCAL}"
        )
    return url


def _start(words: Sequence[str], environment: Mapping[str, str], *, slurm: bool) -> None:
    """Start a server in place of this process, or as a SLURM job."""
    program = "sbatch" if slurm else "vllm"
    if shutil.which(program) is None:
        fix = "run this where SLURM is" if slurm else "pip install 'agentsafe[vllm]'"
        raise UserError(f"{program}: there is no such program here: {fix}")
    if not slurm:
        os.execvpe(words[0], list(words), dict(environment))
    Path("logs/slurm").mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for a log
    subprocess.run(["sbatch", str(_SBATCH), *words], env=dict(environment), check=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
