"""The vLLM backend; with a random model where vLLM is installed."""

import asyncio
import importlib.util
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from agentsafe.errors import UserError
from agentsafe.inference import vllm
from agentsafe.inference.types import Sampling
from agentsafe.inference.vllm_protocol import base_and_adapter, engine_arguments
from agentsafe.models.config import Model
from tests.helpers import grouped
from tests.helpers.tiny_model import CHATML, tiny_tokenizer, write_tiny_checkpoint

torch = pytest.importorskip("torch")

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
WORDS = "a short one|a prompt of quite some more words, longer than the others|x|yes or no?"
PROMPTS = [[{"role": "user", "content": text}] for text in WORDS.split("|")]


def ask(chat, *requests):
    """Send all requests at once; return their completions."""

    async def all_at_once():
        return await asyncio.gather(*(chat.complete(*each) for each in requests))

    return asyncio.run(all_at_once())


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_a_package_that_is_missing_is_the_users_to_install():
    with pytest.raises(UserError) as raised:
        vllm.load("mine", Model("m", backend="vllm"), "folder")
    assert str(raised.value) == (
        "models.mine: the backend vllm needs the package vllm, which is not installed: "
        "pip install 'agentsafe[vllm]'"
    )


def test_what_vllm_cannot_do_is_said_before_it_is_looked_for():
    with pytest.raises(UserError, match=r"^models.mine.quantization: "):
        vllm.load("mine", Model("m", backend="vllm", quantization="int8"), "folder")


class Stopping(vllm.VllmChat):
    """A chat whose engine writes one text and stops at each stop string, like vLLM."""

    def __init__(self, text, template):
        tokenizer = tiny_tokenizer(template)
        self.name, self.context, self._tokenizer, self._options = "mine", 512, tokenizer, {}
        self.tokens, self.asked = tokenizer(text)["input_ids"], []

    async def _output(self, prompt, arguments):
        self.asked.append(arguments)
        done = len(prompt) - len(self._prompt(PROMPTS[2]).tokens)
        for end in range(done + 1, len(self.tokens) + 1):
            tokens = self.tokens[done:end]
            text = self._tokenizer.decode(tokens)
            stop = next((stop for stop in arguments["stop"] if stop in text), None)
            if stop or len(tokens) == arguments["max_tokens"]:
                reason = "stop" if stop else "length"
                break
        output = SimpleNamespace(token_ids=tokens, finish_reason=reason, stop_reason=stop)
        return SimpleNamespace(outputs=[output], num_cached_tokens=0)


@pytest.mark.parametrize(("opening", "tag"), [("", "<think>"), ("<think>\n", "")])
def test_a_turn_goes_on_after_a_stop_string_inside_its_reasoning(opening, tag):
    text = f"{tag}a END b END</think>c END d"
    chat = Stopping(text, CHATML + opening)
    [found] = ask(chat, (PROMPTS[2], Sampling(stop=("END",), seed=5)))
    assert found.text == "<think>a END b END</think>c END"
    assert (found.stop_reason, found.completion_tokens) == ("stop", len(text) - 2)
    assert len({asked["seed"] for asked in chat.asked}) == len(chat.asked) == 3
    [cut] = ask(chat, (PROMPTS[2], Sampling(stop=("END",), max_tokens=len(tag) + 5)))
    assert (cut.text, cut.stop_reason) == ("<think>a END", "length")


class Engine:
    """The part of vLLM's engine that loads adapters."""

    def __init__(self):
        self.loaded, self.model_config = {1: "first"}, SimpleNamespace(max_model_len=99)

    async def add_lora(self, request):
        assert not self.loaded  # it has room for one
        if request.lora_path.endswith("broken"):
            raise ValueError("no\nweights")
        self.loaded[request.lora_int_id] = request.lora_path

    async def remove_lora(self, number):
        del self.loaded[number]

    def shutdown(self):
        self.loaded.clear()


class Request(NamedTuple):
    """The part of vLLM's `LoRARequest`."""

    lora_name: str
    lora_int_id: int
    lora_path: str


def test_an_engine_plays_one_lineage_after_another(tmp_path):
    pytest.importorskip("peft")
    write_tiny_checkpoint(tmp_path / "bold")
    first, second = (grouped.write_lineage(tmp_path / f"bold+s{n}", n) for n in range(2))
    broken = grouped.write_lineage(tmp_path / "broken", 2)
    wide = grouped.write_lineage(tmp_path / "wide", 3, rank=9)
    model, engine, loop = Model("m", backend="vllm"), Engine(), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    lora = Request("adapter", 1, str(first))
    chat = vllm.VllmChat("m", engine, None, loop=loop, options={}, lora=lora)
    base, adapter = base_and_adapter(model, str(first))
    chat.started = model, engine_arguments("m", model, base, adapter)
    assert chat.switch(second) and engine.loaded == {2: str(second)}
    assert chat._lora == ("adapter-2", 2, str(second))
    assert chat.switch(first) and engine.loaded == {3: str(first)}
    for other in (wide, tmp_path / "bold"):
        assert not chat.switch(other)
    with pytest.raises(UserError, match=r"^models.m: vLLM does not load .*broken: no weights"):
        chat.switch(broken)
    chat.close()


def test_a_spawned_process_does_not_find_the_script(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "script.py", raising=False)
    with pytest.raises(KeyError), vllm._without_script():
        assert not hasattr(main, "__file__")
        raise KeyError
    assert main.__file__ == "script.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that writes printable ASCII; "W" ends a turn like its end token."""
    from agentsafe.models import loading

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder, hidden=128)
    model, tokenizer = loading.load_model(folder), tiny_tokenizer()
    kept = [tokenizer.get_vocab()[chr(sign)] for sign in range(ord("!"), ord("~") + 1)]
    others = torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(kept), False)
    with torch.no_grad():
        model.lm_head.weight[others] = 0.0
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.get_vocab()["W"]]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    peft = pytest.importorskip("peft")
    from agentsafe.models import loading

    config = peft.LoraConfig(
        r=12, lora_alpha=24, target_modules="all-linear", init_lora_weights=False
    )
    made = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    peft.get_peft_model(loading.load_model(folder), config).save_pretrained(made)
    return str(made)


@pytest.fixture(scope="module")
def chat(folder, adapter):
    options = {"dtype": "float32", "memory_fraction": 0.3, "concurrency": 16}
    model = Model("tiny", backend="vllm", adapter=adapter, **options)
    chat = vllm.load("tiny", model, str(folder))
    yield chat
    chat.close()


@pytest.fixture(scope="module")
def local(folder, adapter):
    from agentsafe.inference import hf

    return hf.load(folder, max_batch=16, adapter=adapter)


@needs_vllm
def test_answers_are_those_of_transformers(chat, local):
    long = ask(local, *((prompt, Sampling(max_tokens=60)) for prompt in PROMPTS))
    stops = [each.text[-6:-4] or "never there" for each in long]
    requests = [
        (PROMPTS[n % 4], Sampling(max_tokens=1 + 5 * n, stop=("never", stops[n % 4])[: n % 3]))
        for n in range(24)
    ]
    expected = ask(local, *requests)
    assert {each.stop_reason for each in expected} == {"stop", "length"}
    assert ask(chat, *requests) == expected
    assert ask(chat, *requests) == expected  # in another event loop, with what is cached
    choices = "0", "1", "2", "3"
    found, known = (asyncio.run(each.choose(PROMPTS[3], choices)) for each in (chat, local))
    assert found.probabilities == pytest.approx(known.probabilities, rel=1e-4)
    assert found.prompt_tokens == known.prompt_tokens


@needs_vllm
def test_a_draw_depends_on_its_seed(chat):
    texts = [c.text for c in ask(chat, *((PROMPTS[0], Sampling(1.0, 12, n)) for n in range(8)))]
    assert len({*texts}) > 6
    assert {c.text for c in ask(chat, *[(PROMPTS[0], Sampling(1.0, 12, 5))] * 3)} == {texts[5]}


@needs_vllm
def test_an_answer_is_one_of_the_choices(chat):
    choices = 'may "be"\n or ü', "no"
    found = ask(chat, *((PROMPTS[0], Sampling(1.0, 40, n, choices=choices)) for n in range(4)))
    assert {each.text for each in found} <= {*choices}
    assert {each.stop_reason for each in found} == {"stop"}


@needs_vllm
def test_two_choices_that_begin_alike_cannot_be_told_apart(chat):
    with pytest.raises(UserError, match="two of yes, yep begin with the same token"):
        asyncio.run(chat.choose(PROMPTS[0], ["yes", "yep"]))


@needs_vllm
def test_the_end_of_the_context_is_said_to_be_it(chat):
    long, full = ([{"role": "user", "content": "word " * number}] for number in (400, 500))
    fits, none = ask(chat, (long, Sampling(max_tokens=500)), (full, Sampling(max_tokens=5)))
    assert fits.prompt_tokens + fits.completion_tokens <= chat.context == 2048
    assert fits.stop_reason in ("context", "stop")
    assert (none.text, none.stop_reason, none.completion_tokens) == ("", "context", 0)
    assert asyncio.run(chat.choose(full, ["0", "1"])).probabilities == ()


@needs_vllm
def test_a_cancelled_request_is_dropped(chat):
    async def cancel():
        asked = asyncio.ensure_future(chat.complete(PROMPTS[0], Sampling(1.0, 1500)))
        while not chat._engine.get_num_unfinished_requests():
            await asyncio.sleep(0.001)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(cancel())
    ask(chat, (PROMPTS[0], Sampling(max_tokens=1)))
    assert chat._engine.get_num_unfinished_requests() == 0


@needs_vllm
def test_a_context_longer_than_the_models_is_one_line(folder):
    model = Model("tiny", backend="vllm", dtype="float32", context=4096)
    with pytest.raises(UserError, match=r"^models.tiny: vLLM does not start with [^\n]*4096"):
        vllm.load("tiny", model, str(folder))
