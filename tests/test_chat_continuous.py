"""Continuous batching on the CPU, with random models of the real kinds."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading

import pytest

from agentsafe import loading
from agentsafe.chat import Sampling
from agentsafe.errors import UserError
from tests.tiny_model import tiny_tokenizer, write_tiny_checkpoint

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from agentsafe.chat import continuous  # noqa: E402 - needs torch
from agentsafe.chat.continuous import ContinuousChat, parity  # noqa: E402
from agentsafe.chat.local import LocalChat  # noqa: E402

WORDS = "a short one|a prompt of quite some more words, over a page of the cache|x|yes or no?"
PROMPTS = [[{"role": "user", "content": text}] for text in WORDS.split("|")]
TEXTS = [*WORDS.split("|"), "a prompt of quite some more words, over a page, but another"]


def write_tiny_llama(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder):
    """Model and tokenizer; the model writes letters and signs only."""
    model, tokenizer = loading.load_model(folder), loading.load_tokenizer(folder)
    kept = [tokenizer.get_vocab()[chr(sign)] for sign in range(ord("!"), ord("~") + 1)]
    others = torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(kept), False)
    with torch.no_grad():
        model.lm_head.weight[others] = 0.0
    return model, tokenizer


@pytest.fixture(scope="module", params=[write_tiny_checkpoint, write_tiny_llama])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def loaded(qwen):
    return load(qwen)


@pytest.fixture
def chat(loaded):
    chat = ContinuousChat(*loaded, max_batch=8)
    yield chat
    chat.close()


def ask(chat, *requests):
    """What becomes of requests that are all made at once: completions, or what was raised."""

    async def all_at_once():
        made = (chat.complete(*request) for request in requests)
        return await asyncio.gather(*made, return_exceptions=True)

    return asyncio.run(all_at_once())


def generating():
    """The threads that managers run in."""
    return [each for each in threading.enumerate() if "_run_generation_loop" in each.name]


def noisy(model, size):
    """Add noise to a model's logits, another each time, so that no two runs agree."""
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits + size * torch.randn_like(logits)
    )
    return model


def test_texts_are_those_of_padded_batches(folder):
    model, tokenizer = load(folder)
    local = LocalChat(model, tokenizer, max_batch=64)
    long = ask(local, *((prompt, Sampling(max_tokens=80)) for prompt in PROMPTS))
    stops = [each.text[12] for each in long]
    requests = [
        (PROMPTS[n % 4], Sampling(max_tokens=1 + 7 * n, stop=("never", stops[n % 4])[: n % 3]))
        for n in range(12)
    ]
    expected = ask(local, *requests)
    assert {each.stop_reason for each in expected} == {"stop", "length"}
    chat = ContinuousChat(model, tokenizer, max_batch=5)  # fewer than ask at once
    assert ask(chat, *requests) == expected
    assert ask(chat, *requests) == expected  # in another event loop, with pages left in the cache
    chat.close()


def test_a_text_that_has_ended_is_not_gone_on_with(chat):
    [free] = ask(chat, (PROMPTS[0], Sampling(max_tokens=30)))
    for expected in (5, 1):
        sampling = Sampling(max_tokens=1500, stop=(free.text[:expected],))
        [stopped] = ask(chat, (PROMPTS[0], sampling))
        assert stopped.completion_tokens == expected
    ask(chat, (PROMPTS[0], Sampling(max_tokens=1)))  # later requests come after the cancellations
    assert not chat._manager.batch_processor.scheduler.active_requests
    assert chat._manager.output_router.output_queue.empty()


def test_an_end_token_ends_the_text_and_is_not_in_it(loaded, chat):
    model, tokenizer = loaded
    [free] = ask(chat, (PROMPTS[0], Sampling(max_tokens=30)))
    end = free.text[12]
    model.generation_config.eos_token_id = tokenizer(end)["input_ids"]
    ending = ContinuousChat(model, tokenizer, max_batch=2)
    [ended] = ask(ending, (PROMPTS[0], Sampling(max_tokens=30)))
    assert ended.text == free.text[: free.text.index(end)]
    assert ended.stop_reason == "stop"
    ending.close()


def test_only_the_likeliest_text_is_to_be_had(chat):
    [refused] = ask(chat, (PROMPTS[0], Sampling(temperature=0.5)))
    assert isinstance(refused, ValueError)
    assert chat.constrains is False


def test_the_end_of_the_context_is_said_to_be_it(loaded):
    chat = ContinuousChat(*loaded, max_batch=2, context=60)
    long = [{"role": "user", "content": "word " * 40}]
    fits, full = ask(chat, (PROMPTS[0], Sampling(max_tokens=500)), (long, Sampling(max_tokens=5)))
    assert (full.text, full.stop_reason, full.completion_tokens) == ("", "context", 0)
    assert fits.prompt_tokens + fits.completion_tokens == 60
    assert fits.stop_reason == "context"
    [exact] = ask(chat, (PROMPTS[0], Sampling(max_tokens=60 - fits.prompt_tokens)))
    assert (exact.text, exact.stop_reason) == (fits.text, "length")
    chat.close()


def test_conversations_that_the_cache_cannot_hold_together_take_turns(loaded, monkeypatch):
    monkeypatch.setattr(continuous, "_EACH", 1)  # room for the longest conversation, and no more
    chat = ContinuousChat(*loaded, max_batch=16, context=192)
    requests = [(PROMPTS[n % 4], Sampling(max_tokens=100 - n)) for n in range(16)]
    assert ask(chat, *requests) == ask(LocalChat(*loaded, max_batch=16), *requests)
    chat.close()


def test_a_cancelled_request_leaves_the_others_alone(chat):
    async def cancel_one():
        gone = asyncio.ensure_future(chat.complete(PROMPTS[0], Sampling(max_tokens=1500)))
        other = asyncio.ensure_future(chat.complete(PROMPTS[1], Sampling(max_tokens=40)))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await other

    [expected] = ask(chat, (PROMPTS[1], Sampling(max_tokens=40)))
    assert asyncio.run(cancel_one()) == expected
    assert not chat._manager.output_router.result_handlers


def test_a_failure_reaches_all_who_wait_and_those_who_come_later(loaded):
    model, tokenizer = loaded
    chat = ContinuousChat(model, tokenizer, max_batch=2)
    calls = []

    def fail(module, inputs, output):
        calls.append(output)
        if len(calls) > 3:
            raise RuntimeError("the GPU\nis out of memory")

    model.model.register_forward_hook(fail)
    found = ask(chat, *[(prompt, Sampling(max_tokens=50)) for prompt in PROMPTS])
    line = "continuous batching broke off: the GPU is out of memory; write batching: padded, "
    assert [type(each) for each in found] == [UserError] * 4
    assert {str(each) for each in found} == {f"{line}or lower concurrency"}
    [later] = ask(chat, (PROMPTS[0], Sampling()))
    assert str(later).startswith("continuous batching broke off: ")
    chat.close()
    assert not generating()


def test_whoever_waits_when_it_is_closed_is_told(loaded):
    chat = ContinuousChat(*loaded, max_batch=2)

    async def close_under_way():
        waiting = asyncio.ensure_future(chat.complete(PROMPTS[0], Sampling(max_tokens=1500)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(chat.close)
        await waiting

    with pytest.raises(UserError, match="broke off"):
        asyncio.run(close_under_way())
    chat.close()
    assert not generating()


def test_the_thread_ends_with_the_object(loaded):
    chat = ContinuousChat(*loaded, max_batch=2)
    ask(chat, (PROMPTS[0], Sampling(max_tokens=4)))
    assert len(generating()) == 1
    del chat
    gc.collect()
    assert not generating()


def test_an_interpreter_that_fails_ends_at_once(qwen):
    script = f"""
        import asyncio
        from agentsafe import loading
        from agentsafe.chat import Sampling
        from agentsafe.chat.continuous import ContinuousChat

        model, tokenizer = loading.load_model({str(qwen)!r}), loading.load_tokenizer({str(qwen)!r})
        chat = ContinuousChat(model, tokenizer, max_batch=2)

        async def ask():
            message = dict(role="user", content="x")
            waiting = asyncio.ensure_future(chat.complete([message], Sampling(max_tokens=1500)))
            await asyncio.sleep(0.05)
            raise KeyError("this is what went wrong")

        asyncio.run(ask())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'this is what went wrong'")


def test_a_chat_template_that_refuses_a_role_is_the_users_to_mend(tmp_path):
    template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}x"
    folder = write_tiny_checkpoint(tmp_path, template=template)
    chat = ContinuousChat(*load(folder), max_batch=2)
    [refused] = ask(chat, ([{"role": "system", "content": "x"}], Sampling()))
    assert isinstance(refused, UserError)
    assert "refuses a conversation of system (no system role)" in str(refused)
    chat.close()


def test_there_is_parity_on_a_cpu_whatever_the_checkpoint_asks_of_generate(folder):
    model, tokenizer = load(folder)
    model.generation_config.repetition_penalty = 2.0
    own = model.generation_config
    assert parity(model, tokenizer, TEXTS, max_new_tokens=60) is None
    assert model.generation_config is own
    assert not generating()


def test_parity_says_where_another_token_comes(loaded):
    model, tokenizer = loaded
    line = parity(noisy(model, 3.0), tokenizer, TEXTS)
    assert "\n" not in line
    assert line.startswith("prompt 0 differs at new token ")


def test_tied_tokens_may_be_either(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[: model.lm_head.weight.shape[0] - 1 : 2]
    noisy(model, 1e-7)
    encoded = tokenizer(TEXTS)["input_ids"]
    once, again = (continuous._together(model, encoded, 20) for _ in range(2))
    assert once != again
    assert parity(model, tokenizer, TEXTS, max_new_tokens=20) is None


def test_parity_says_why_it_cannot_run(loaded):
    model, tokenizer = loaded
    model.set_attn_implementation("flex_attention")
    line = parity(model, tokenizer, TEXTS)
    assert line.startswith("continuous batching does not run: ValueError: ")
    assert "flex_attention" in line
    assert model.config._attn_implementation == "flex_attention"


def test_parity_says_that_it_fails_under_way(loaded):
    model, tokenizer = loaded

    def fail(module, inputs, output):
        raise RuntimeError("no kernel\nfor this")

    model.model.register_forward_hook(fail)
    line = parity(model, tokenizer, TEXTS)
    assert line == "continuous batching does not run: RuntimeError: no kernel for this"
    assert not generating()


def test_an_eager_model_is_as_it_was_afterwards(loaded, monkeypatch):
    model, tokenizer = loaded
    model.set_attn_implementation("eager")
    assert parity(model, tokenizer, TEXTS, max_new_tokens=20) is None
    assert model.config._attn_implementation == "eager"
    monkeypatch.setattr(continuous, "_EACH", 10**9)
    line = parity(model, tokenizer, TEXTS)
    assert line.startswith("continuous batching does not run: MemoryError: ")
    assert model.config._attn_implementation == "eager"


def test_broken_weights_have_no_parity(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert "the weights are broken" in parity(model, tokenizer, TEXTS, max_new_tokens=2)
