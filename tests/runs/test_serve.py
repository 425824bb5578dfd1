"""The command of a server: what the config implies, and what it says where it cannot be."""

import shlex
import stat

import pytest
import yaml

from agentsafe.errors import UserError
from agentsafe.models.checkpoint import write_base
from agentsafe.runs.serve import as_shell, main, servable, serve_command
from tests.helpers.config import llms

OWN = {"model": "a/small", "backend": "openai", "base_url_env": "SMALL_URL"}
URL = "http://localhost:8123/v1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def options(words):
    """The options of a command with their values, without dashes."""
    found, name = {}, None
    for word in words[3:]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = []
        else:
            found[name].append(word)
    return {name: " ".join(values) for name, values in found.items()}


def command(url=URL, commit=COMMIT, training=None, **fields):
    config = llms(models={"small": {**OWN, **fields}}, training=training or {})
    return serve_command(config, "small", commit, url)


def test_a_source_that_trains_gets_room_for_its_composed_adapters():
    recipes = {"recipes": [["safe"], ["safe", "help", "both"]], "lora": {"r": 16}, "seeds": [0, 1]}
    variables, words = command(lora=True, context=9000, dtype="bfloat16", training=recipes)
    assert words[:3] == ["vllm", "serve", "a/small"]
    assert options(words) == {
        "served-model-name": f"a/small a/small@{COMMIT}",
        "revision": COMMIT,
        "dtype": "bfloat16",
        "load-format": "safetensors",
        "max-model-len": "9000",
        "gpu-memory-utilization": "0.9",
        "enable-prefix-caching": "",
        "generation-config": "vllm",
        "enable-lora": "",
        "max-lora-rank": "64",
        "max-loras": "8",
        "max-cpu-loras": "8",
        "host": "127.0.0.1",
        "port": "8123",
    }
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_a_judge_is_served_without_adapters():
    variables, words = command(commit=None, quantization="int4")
    found = options(words)
    assert "enable-lora" not in found and "revision" not in found
    assert found["served-model-name"] == "a/small" and found["max-model-len"] == "auto"
    assert found["quantization"] == found["load-format"] == "bitsandbytes"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in variables


def test_a_command_can_be_pasted_into_a_shell_and_holds_no_key():
    variables, words = command(lora=True, model="folder with spaces")
    text = as_shell(variables, words, "SMALL_KEY")
    pasted = shlex.split(text.replace("\\\n", " "))
    assert pasted[-len(words) :] == words
    assert 'VLLM_API_KEY="$SMALL_KEY"' in text.splitlines()[0]


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    folder = tmp_path / "small"
    folder.mkdir()
    models = {name: dict(entry) for name, entry in llms()["models"].items()}
    models["small"] |= {**OWN, "model": str(folder), "lora": True, "api_key_env": "SMALL_KEY"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(llms(models=models)))
    monkeypatch.setenv("SMALL_KEY", "sk-very-secret")
    monkeypatch.setenv("SMALL_URL", URL)
    return path


def test_the_only_model_on_a_server_of_ones_own_needs_no_name(config_file, capsys):
    assert servable(yaml.safe_load(config_file.read_text())) == ["small"]
    main([str(config_file), "--", "--tensor-parallel-size", "2"])
    printed = capsys.readouterr()
    assert "--port 8123" in printed.out and "--tensor-parallel-size 2" in printed.out
    assert "sk-very-secret" not in printed.out + printed.err


@pytest.mark.parametrize("how", ["--run", "--sbatch"])
def test_a_server_gets_its_key_in_its_environment_alone(config_file, tmp_path, monkeypatch, how):
    """A program of that name records what it gets."""
    import subprocess
    import sys

    name = {"--run": "vllm", "--sbatch": "sbatch"}[how]
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$VLLM_API_KEY" "$@" > "$RECORDED"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    recorded = tmp_path / "recorded"
    monkeypatch.setenv("RECORDED", str(recorded))
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    from tests.helpers.paths import ROOT

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    asked = [sys.executable, "-m", "agentsafe.runs.serve", str(config_file), "small", how]
    subprocess.run(asked, check=True, cwd=tmp_path, capture_output=True)
    key, *words = recorded.read_text().split()
    assert key == "sk-very-secret" and "sk-very-secret" not in words
    assert "--max-lora-rank" in words
    assert words[words.index("--host") + 1] == {"--run": "127.0.0.1", "--sbatch": "0.0.0.0"}[how]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["large"], "MODEL: large is not a model on a server of your own: write one of small"),
        (["small", "--run"], "vllm: there is no such program here: pip install"),
        (["small", "--sbatch"], "sbatch: there is no such program here: run this where SLURM is"),
    ],
)
def test_what_cannot_be_served_is_one_line(config_file, monkeypatch, arguments, line):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError) as error:
        main([str(config_file), *arguments])
    assert line in str(error.value)


def test_an_address_that_is_none_is_not_shown(config_file, monkeypatch):
    monkeypatch.setenv("SMALL_URL", "sk-a-key")
    with pytest.raises(UserError, match="SMALL_URL is not a server's address") as error:
        main([str(config_file)])
    assert "sk-a-key" not in str(error.value)


def test_an_adapter_is_not_served_as_a_base(config_file):
    config = yaml.safe_load(config_file.read_text())
    write_base(config["models"]["small"]["model"], "/data/base", at="/data/small", digest="0")
    with pytest.raises(UserError, match="is an adapter, and the model of a server must be whole"):
        main([str(config_file)])
