"""Backends of models, and identities that tell one model's answers from another's."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest

from agentsafe.errors import UserError
from agentsafe.inference import registry
from agentsafe.inference.registry import identity, serve
from agentsafe.inference.types import Sampling
from agentsafe.models import hub
from agentsafe.models.config import Model
from tests.helpers import grouped
from tests.helpers.tiny_model import write_tiny_checkpoint

torch = pytest.importorskip("torch")

from agentsafe.inference.hf import LocalChat

MODEL = Model("tiny", concurrency=4)
PROMPT = [{"role": "user", "content": "Say something."}]
THINKING = (
    "{% if enable_thinking is not defined %}default"
    "{% elif enable_thinking %}thinks a lot{% else %}no{% endif %}"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def folder(whole, tmp_path):
    """A checkpoint folder that no test has served yet."""
    return shutil.copytree(whole, tmp_path / "tiny")


def changed(**settings):
    return replace(MODEL, **settings)


def said(chat, **sampling):
    return asyncio.run(chat.complete(PROMPT, Sampling(**sampling)))


def test_a_model_is_served_once_in_a_process(folder, whole, tmp_path):
    chat = serve("tiny", MODEL, folder, threads=1)
    assert isinstance(chat, LocalChat) and chat.constrains and chat.max_batch == 4
    assert serve("tiny", changed(), str(folder), threads=1) is chat
    other = shutil.copytree(whole, tmp_path / "other")
    assert serve("tiny", MODEL, other, threads=1) is not chat
    assert serve("tiny", changed(dtype="bfloat16"), folder, threads=1) is not chat
    assert serve("tiny", MODEL, folder, threads=1) is chat


def test_lineages_take_turns_on_one_base(tmp_path, monkeypatch, caplog):
    pytest.importorskip("peft")
    monkeypatch.setattr(registry, "_in_turn", {})
    write_tiny_checkpoint(tmp_path / "bold")
    write_tiny_checkpoint(tmp_path / "bold+all.j.b0.1.s0", seed=1)  # whole weights
    made = [grouped.write_lineage(tmp_path / f"bold+safe.j.b0.1.s{n}", n) for n in range(2)]
    folders = [made[0], made[1], tmp_path / "bold+all.j.b0.1.s0", made[0]]
    alone = [said(serve(each.name, MODEL, each, threads=1), max_tokens=9) for each in folders]
    with caplog.at_level("INFO"):
        for folder, expected in zip(folders, alone, strict=True):
            chat = serve(folder.name, MODEL, folder, threads=1, in_turn=True)
            assert said(chat, max_tokens=9) == expected
            assert said(chat, max_tokens=9) == expected  # with its own keys and values, if any
    assert caplog.text.count(f"loading the weights of {tmp_path / 'bold'}\n") == 1
    assert len({each.text for each in alone}) == 3
    assert [*registry._in_turn.values()] == [chat]
    write_tiny_checkpoint(tmp_path / "timid")
    other = grouped.write_lineage(tmp_path / "timid+safe.j.b0.1.s0", 5, base="timid")
    assert serve(other.name, MODEL, other, threads=1, in_turn=True) is not chat
    assert len(registry._in_turn) == 1


def test_a_models_settings_reach_what_serves_it(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny", template=THINKING)
    model = changed(dtype="bfloat16", context=100, thinking=True, concurrency=3)
    chat = serve("tiny", model, folder, threads=1)
    assert (chat.model.dtype, chat.context, chat.max_batch) == (torch.bfloat16, 100, 3)
    assert said(chat, max_tokens=1).prompt_tokens == len("thinks a lot")


def test_what_serves_a_model_names_what_is_wrong_with_it(folder, tmp_path):
    with pytest.raises(UserError, match="int4 needs "):
        serve("tiny", changed(quantization="int4"), folder)
    with pytest.raises(UserError, match=r"gone/adapter_model\.safetensors: no such weights"):
        serve("tiny", changed(adapter=str(tmp_path / "gone")), folder)
    with pytest.raises(UserError, match="nowhere: no such checkpoint folder"):
        serve("tiny", MODEL, tmp_path / "nowhere")
    assert isinstance(serve("tiny", MODEL, folder, threads=1), LocalChat)


def test_a_server_is_asked_where_its_address_says(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    from agentsafe.inference.openai import ApiChat

    model = Model("gpt", backend="openai", base_url_env="MY_SERVER", api_key_env="MY_KEY")
    hub.fetch_model("gpt", model, tmp_path / "gpt")
    with pytest.raises(UserError, match=r"^models.gpt.base_url_env: [^\n]*MY_SERVER"):
        serve("gpt", model, tmp_path / "gpt")
    monkeypatch.setenv("MY_SERVER", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("MY_KEY", "secret")
    chat = serve("gpt", model, tmp_path / "gpt")
    assert isinstance(chat, ApiChat)
    assert serve("gpt", model, tmp_path / "gpt") is chat
    assert "secret" not in repr(chat)


IN_CACHE_KEY = {
    "model": "other",
    "backend": "vllm",
    "revision": "v2",
    "adapter": "lora",
    "dtype": "bfloat16",
    "quantization": "int4",
    "context": 99,
    "thinking": False,
    "template_options": {"reasoning_effort": "low"},
    "trust_remote_code": True,
    "base_url_env": "URL",
    "structured": "choice",
    "omit": ("seed",),
    "options": {"top_k": 5},
}
NOT_IN_CACHE_KEY = {
    "concurrency": 9,
    "memory_fraction": 0.5,
    "lora": True,
    "timeout": 9.0,
    "retries": 1,
    "api_key_env": "KEY",
    "max_tokens_field": "max_completion_tokens",
    "price": {"input": 1.0, "output": 2.0},
}


def test_an_identity_covers_the_settings_that_change_answers_and_no_others(folder):
    assert {*IN_CACHE_KEY, *NOT_IN_CACHE_KEY} == {*Model.__dataclass_fields__}
    own = identity(MODEL, folder)
    assert identity(changed(), str(folder)) == own
    others = {identity(changed(**{name: value}), folder) for name, value in IN_CACHE_KEY.items()}
    assert len(others - {own}) == len(IN_CACHE_KEY)
    for name, value in NOT_IN_CACHE_KEY.items():
        assert identity(changed(**{name: value}), folder) == own
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert identity(MODEL, folder) != own


def test_an_identity_follows_the_files_that_a_checkpoint_links_to(folder, tmp_path):
    adapter = tmp_path / "lora"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    model = Model(str(folder), adapter=str(adapter))

    def taken():
        hub.fetch_model("tiny", model, tmp_path / "taken")
        return identity(model, tmp_path / "taken")

    before = taken()
    assert taken() == before
    (adapter / "adapter_model.safetensors").write_text("others")
    assert taken() != before
    before = taken()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    assert taken() != before


def test_a_lineage_is_not_asked_of_a_server_that_has_its_source_alone(folder):
    remote = changed(backend="openai", base_url_env="TINY_URL")
    with pytest.raises(UserError, match=r"^models\.tiny: its server would answer for tiny\+safe"):
        serve("tiny+safe.rules.b0.1.s0", remote, folder)
