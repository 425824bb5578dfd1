"""The transformers backend, with a small random model."""

import asyncio
from collections import Counter

import pytest

from agentsafe.errors import UserError
from agentsafe.inference.types import Sampling
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.react import prompts
from agentsafe.rollouts.roll_out import Agent, roll_out
from tests.helpers.scripted import Echo, small_suite
from tests.helpers.tiny_model import CHATML, write_tiny_checkpoint

torch = pytest.importorskip("torch")

from agentsafe.inference import hf

WORDS = "a short one|a prompt of quite some more words, so that rows need padding|x|yes or no?"
PROMPTS = [[{"role": "user", "content": text}] for text in WORDS.split("|")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def chat(folder):
    return hf.load(folder, max_batch=64, threads=1)


def ask(chat, *requests):
    """Send all requests at once; return their completions."""

    async def all_at_once():
        return await asyncio.gather(*(chat.complete(*each) for each in requests))

    return asyncio.run(all_at_once())


def one_by_one(chat, *requests):
    return [ask(chat, request)[0] for request in requests]


async def converse(chat, prompt, number, temperature, turns=4):
    """Hold a conversation with turns of different lengths; return its completions."""
    messages, found = list(prompt), []
    for turn in range(turns):
        sampling = Sampling(temperature, 3 + (number * 5 + turn * 3) % 11, seed=97 * number + turn)
        found.append(await chat.complete(messages, sampling))
        messages += [
            {"role": "assistant", "content": found[-1].text},
            {"role": "user", "content": "Observation: " + "ok " * (number % 3)},
        ]
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_many_conversations_at_once_say_what_each_says_alone(folder, chat, temperature):
    numbers = range(24)

    async def together():
        return await asyncio.gather(
            *(converse(chat, PROMPTS[n % len(PROMPTS)], n, temperature) for n in numbers)
        )

    at_once = asyncio.run(together())
    for n in numbers:
        alone = hf.load(folder, max_batch=1)  # nothing of an earlier turn is shared
        assert at_once[n] == asyncio.run(converse(alone, PROMPTS[n % len(PROMPTS)], n, temperature))


def test_a_small_batch_limit_changes_nothing(folder, chat):
    requests = [(PROMPTS[n % 4], Sampling(1.0, 9, seed=n)) for n in range(20)]
    small = hf.load(folder, max_batch=3)
    assert ask(small, *requests) == ask(chat, *requests)


def test_the_likeliest_text_is_that_of_generate(chat):
    for prompt in PROMPTS:
        text = chat.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([chat.tokenizer(text)["input_ids"]])
        made = chat.model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        [completion] = ask(chat, (prompt, Sampling(max_tokens=24)))
        assert completion.text == chat.tokenizer.decode(made, skip_special_tokens=True)
        assert completion.prompt_tokens == ids.shape[1]
        assert completion.completion_tokens == len(made)


def test_draws_follow_the_models_distribution(chat):
    number = 4000
    chat.max_batch = number
    text = chat.tokenizer.apply_chat_template(
        PROMPTS[0], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([chat.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = chat.model(ids).logits[0, -1].double()
    for temperature in (0.5, 1.0):
        rows = [hf.Row(ids[0].tolist(), 1, temperature, seed) for seed in range(number)]
        hf.generate(chat.model, rows, lambda row: False)
        drawn = Counter(row.tokens[0] for row in rows)
        expected = (logits / temperature).softmax(-1).tolist()
        off = sum(abs(drawn[token] / number - share) for token, share in enumerate(expected)) / 2
        spread = sum((share / number) ** 0.5 for share in expected) / 2  # above the mean of `off`
        assert off < spread


def test_a_draw_depends_on_its_seed(chat):
    texts = {c.text for c in ask(chat, *((PROMPTS[0], Sampling(1.0, 12, n)) for n in range(8)))}
    assert len(texts) > 6
    assert len({c.text for c in ask(chat, *[(PROMPTS[0], Sampling(1.0, 12, 5))] * 3)}) == 1
    ask(chat, (PROMPTS[0], Sampling(1.0, 3, -1)), (PROMPTS[0], Sampling(1.0, 3, 2**70)))


def test_text_ends_after_its_first_stop_string(chat):
    # Random bytes are rarely text, so the stop strings are taken from a free completion.
    [free] = ask(chat, (PROMPTS[1], Sampling(1.0, 60, seed=3)))
    ascii_at = next(i for i in range(8, 60) if "!" <= free.text[i : i + 1] <= "~")
    for stop in (free.text[ascii_at], free.text[ascii_at - 2 : ascii_at + 1]):
        end = free.text.index(stop) + len(stop)
        [cut] = ask(chat, (PROMPTS[1], Sampling(1.0, 60, seed=3, stop=("never there", stop))))
        assert cut.text == free.text[:end]
        assert cut.stop_reason == "stop"
        assert cut.completion_tokens < free.completion_tokens


def test_an_end_token_of_the_generation_config_ends_the_text_and_is_not_in_it(folder):
    chat = hf.load(folder, max_batch=8)
    [free] = ask(chat, (PROMPTS[0], Sampling(1.0, 20, seed=1)))
    row = next(iter(chat._prefixes._kept.values()))[0].ids[free.prompt_tokens :]
    chat.model.generation_config.eos_token_id = [row[6]]
    ending = hf.LocalChat(chat.model, chat.tokenizer, max_batch=8)
    [ended] = ask(ending, (PROMPTS[0], Sampling(1.0, 20, seed=1)))
    first = row.index(row[6])
    assert ended.stop_reason == "stop"
    assert ended.completion_tokens == first + 1
    assert ended.text == chat.tokenizer.decode(row[:first], skip_special_tokens=True)


def test_each_request_has_its_own_room(chat):
    found = ask(chat, *((PROMPTS[0], Sampling(1.0, n, seed=n)) for n in (1, 7, 30)))
    assert [c.completion_tokens for c in found] == [1, 7, 30]
    assert {c.stop_reason for c in found} == {"length"}


def test_a_prompt_that_leaves_no_room_is_said_to_and_others_go_on(chat):
    chat.context = 60
    long = [{"role": "user", "content": "word " * 40}]
    fits, full = ask(chat, (PROMPTS[0], Sampling(max_tokens=500)), (long, Sampling(max_tokens=5)))
    assert (full.text, full.stop_reason, full.completion_tokens) == ("", "context", 0)
    assert fits.prompt_tokens + fits.completion_tokens == 60
    assert fits.stop_reason == "context"
    left = 60 - fits.prompt_tokens
    wide, same, tight = ask(
        chat, *((PROMPTS[0], Sampling(max_tokens=left + more)) for more in (-1, 0, 1))
    )
    assert [c.stop_reason for c in (wide, same, tight)] == ["length", "length", "context"]
    assert tight.text == same.text == fits.text


def test_an_episode_whose_first_turn_the_context_cuts_is_the_machines_fault(chat):
    suite = small_suite(1)
    settings = Settings(samples=1, max_turn_tokens=500, max_agent_tokens=900)
    chat.context = 40 + len(
        chat.tokenizer.apply_chat_template(
            prompts(suite, suite.cases, "compact")["official_0"],
            add_generation_prompt=True,
            return_dict=False,
        )
    )
    rollouts, audits = asyncio.run(
        roll_out(Agent("bold", chat), suite, suite.cases, Echo(), settings)
    )
    row = rollouts.row(0, named=True)
    assert (row["stop_reason"], row["error_kind"], row["agent_tokens"]) == ("error", "context", 40)
    assert [message["role"] for message in row["messages"]] == ["assistant"]
    assert audits["malformed_turns"].to_list() == [0]


def test_a_later_turn_costs_its_own_tokens_only(chat):
    fed = []
    chat.model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: fed.append(output.shape[0] * output.shape[1])
    )
    messages = [{"role": "user", "content": "long " * 100}]
    [first] = ask(chat, (messages, Sampling(max_tokens=1)))
    assert fed == [first.prompt_tokens]
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "ok"}]
    [second] = ask(chat, (messages, Sampling(max_tokens=1)))
    assert fed[1] < second.prompt_tokens - first.prompt_tokens + 3
    ask(chat, *[(PROMPTS[1], Sampling(max_tokens=1))] * 5)  # a shared prompt is prefilled once
    assert fed[2] < 150


@pytest.mark.parametrize(("limits", "kept"), [((4, None), 4), ((64, 100), 3), ((64, 20), 0)])
def test_what_is_kept_of_earlier_turns_is_bounded(chat, limits, kept):
    most, tokens = limits
    chat = hf.LocalChat(chat.model, chat.tokenizer, max_batch=most, cache_tokens=tokens)
    for number in range(9):
        messages = [{"role": "user", "content": f"number {number}"}]
        [made] = ask(chat, (messages, Sampling(max_tokens=2)))
        assert made.prompt_tokens == 27  # 28 are kept: the first of its two new tokens, too
    assert sum(map(len, chat._prefixes._kept.values())) == kept


def test_broken_weights_fail_every_request_and_end_the_job_with_a_line(chat):
    with torch.no_grad():
        chat.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="weights are broken"):
        ask(chat, (PROMPTS[0], Sampling()))
    with pytest.raises(UserError, match="weights are broken"):
        ask(chat, (PROMPTS[0], Sampling(1.0)), (PROMPTS[1], Sampling()))
    suite = small_suite()
    with pytest.raises(UserError, match=r"^the checkpoint's logits [^\n]*make it again$"):
        asyncio.run(roll_out(Agent("bold", chat), suite, suite.cases, Echo(), Settings()))


def test_a_cancelled_request_leaves_the_others_alone(chat):
    async def cancel_one():
        gone = asyncio.ensure_future(chat.complete(PROMPTS[0], Sampling(max_tokens=4)))
        other = asyncio.ensure_future(chat.complete(PROMPTS[1], Sampling(max_tokens=4)))
        await asyncio.sleep(0)
        gone.cancel()
        answer = await other
        with pytest.raises(asyncio.CancelledError):
            await gone
        return answer

    assert asyncio.run(cancel_one()) == ask(chat, (PROMPTS[1], Sampling(max_tokens=4)))[0]


def test_a_folder_without_a_checkpoint_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="empty"):
        hf.load(tmp_path / "empty", max_batch=4)


def test_a_chat_template_that_rejects_a_role_is_a_user_error(tmp_path):
    template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}x"
    chat = hf.load(write_tiny_checkpoint(tmp_path, template=template), max_batch=2)
    with pytest.raises(
        UserError, match=r"rejects a conversation of system \(no system role\).*rollouts.prompt"
    ):
        ask(chat, ([{"role": "system", "content": "x"}], Sampling()))


def test_a_prompt_that_cannot_be_encoded_fails_and_nobody_waits_for_ever(chat):
    with pytest.raises(TypeError):
        ask(chat, ([{"role": "user", "content": "\ud800"}], Sampling()))
    assert ask(chat, (PROMPTS[0], Sampling(max_tokens=2)))[0].completion_tokens == 2


CHOICES = ("yes", "no", "never", "0", "1", "23")


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0, 100.0])
def test_a_model_that_is_held_to_choices_gives_one_beside_rows_that_are_free(chat, temperature):
    held = [
        (PROMPTS[n % 4], Sampling(temperature, 8, seed=n, choices=CHOICES[n % 3 :]))
        for n in range(24)
    ]
    free = [(PROMPTS[n % 4], Sampling(temperature, 3 + n % 9, seed=n)) for n in range(24)]
    mixed = ask(chat, *(each for both in zip(held, free, strict=True) for each in both))
    for (_, sampling), made in zip(held, mixed[::2], strict=True):
        assert made.text in sampling.choices
        assert (made.stop_reason, made.completion_tokens) == ("stop", len(made.text))  # a byte each
    assert mixed[1::2] == one_by_one(chat, *free)
    assert mixed[::2] == one_by_one(chat, *held)
    assert len({made.text for made in mixed[::2]}) > 1 or temperature < 1


def test_draws_among_choices_follow_their_probabilities(chat):
    number, scores = 1000, ("0", "1", "2", "3")
    shares = asyncio.run(chat.choose(PROMPTS[0], scores)).probabilities
    asked = [(PROMPTS[0], Sampling(1.0, 1, n, choices=scores)) for n in range(number)]
    drawn = Counter(made.text for made in ask(chat, *asked))
    for score, share in zip(scores, shares, strict=True):
        assert abs(drawn[score] / number - share) < 5 * (share * (1 - share) / number) ** 0.5 + 1e-9
    [likeliest] = ask(chat, (PROMPTS[0], Sampling(0.0, 1, choices=scores)))
    assert likeliest.text == scores[shares.index(max(shares))]


def test_choices_that_cannot_be_told_apart_are_refused(chat):
    with pytest.raises(ValueError, match="begins another"):
        ask(chat, (PROMPTS[0], Sampling(choices=("no", "none"))))
    [twice] = ask(chat, (PROMPTS[0], Sampling(choices=("no", "no"))))
    assert twice.text == "no"
    with pytest.raises(UserError, match=r"^two of 1, 10 begin with the same token"):
        asyncio.run(chat.choose(PROMPTS[0], ("1", "10")))


@pytest.mark.parametrize("choices", [("0", "1", "2", "3"), ("3", "0"), ("yes", "no", "é")])
def test_choose_is_a_plain_forward_pass(chat, choices):
    for prompt in PROMPTS:
        ids = chat.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = chat.model(ids).logits[0, -1].double()
        firsts = [chat.tokenizer(text)["input_ids"][0] for text in choices]
        choice = asyncio.run(chat.choose(prompt, choices))
        assert choice.probabilities == pytest.approx(logits[firsts].softmax(-1).tolist(), abs=1e-5)
        assert choice.prompt_tokens == ids.shape[1]


def test_choose_beside_others_is_choose_alone(chat):
    async def together():
        free = (chat.complete(prompt, Sampling(1.0, 9, seed=3)) for prompt in PROMPTS)
        chosen = (chat.choose(prompt, ("a", "b")) for prompt in PROMPTS)
        return await asyncio.gather(*free, *chosen)

    found = asyncio.run(together())
    assert found[:4] == one_by_one(
        chat, *((prompt, Sampling(1.0, 9, seed=3)) for prompt in PROMPTS)
    )
    for prompt, choice in zip(PROMPTS, found[4:], strict=True):
        alone = asyncio.run(chat.choose(prompt, ("a", "b")))
        assert choice.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_a_choice_that_finds_no_room_has_no_probabilities(chat):
    chat.context = 20
    choice = asyncio.run(chat.choose(PROMPTS[1], ("a", "b")))
    assert choice.probabilities == () and choice.prompt_tokens > 20
    [full] = ask(chat, (PROMPTS[1], Sampling(choices=("a", "b"))))
    assert (full.text, full.stop_reason) == ("", "context")


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (300, 7), (10**9, 20)])
def test_a_limit_of_cached_tokens_changes_nothing_but_the_batches(chat, tokens, most):
    requests = [
        (PROMPTS[n % 4], Sampling(n % 2, 5 + n % 7, seed=n, choices=("a", "b") * (n % 5 == 0)))
        for n in range(20)
    ]
    unlimited = ask(chat, *requests)
    limited = hf.LocalChat(chat.model, chat.tokenizer, max_batch=64, cache_tokens=tokens)
    rows = []
    chat.model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[0])
    )
    assert ask(limited, *requests) == unlimited
    assert max(rows) <= most and (tokens < 10**9 or max(rows) > 7)


def test_conversations_go_on_alike_whatever_is_kept_of_them(chat):
    limited = hf.LocalChat(chat.model, chat.tokenizer, max_batch=64, cache_tokens=200)

    async def together(model):
        return await asyncio.gather(*(converse(model, PROMPTS[n % 4], n, 1.0) for n in range(8)))

    assert asyncio.run(together(limited)) == asyncio.run(together(chat))


THINKING = (
    "{% if enable_thinking is not defined %}default"
    "{% elif enable_thinking %}thinks a lot{% else %}no{% endif %}"
)


@pytest.mark.parametrize(("thinking", "tokens"), [(None, 7), (True, 12), (False, 2)])
def test_whether_to_think_is_the_templates_to_say(tmp_path, thinking, tokens):
    folder = write_tiny_checkpoint(tmp_path, template=THINKING)
    chat = hf.load(
        folder,
        max_batch=2,
        template_options={} if thinking is None else {"enable_thinking": thinking},
    )
    [made] = ask(chat, (PROMPTS[0], Sampling(max_tokens=1)))
    assert made.prompt_tokens == tokens
    assert asyncio.run(chat.choose(PROMPTS[0], ("a", "b"))).prompt_tokens == tokens


@pytest.mark.parametrize(("asked", "found"), [(None, 2048), (60, 60), (2048, 2048), (4096, 2048)])
def test_a_context_may_be_less_than_the_models_and_not_more(folder, asked, found):
    chat = hf.load(folder, max_batch=2, context=asked)
    assert chat.context == found
    if asked == 60:
        [made] = ask(chat, (PROMPTS[0], Sampling(max_tokens=500)))
        assert (made.prompt_tokens + made.completion_tokens, made.stop_reason) == (60, "context")


def test_no_stop_string_ends_reasoning_that_the_template_opens(tmp_path):
    folder = write_tiny_checkpoint(tmp_path, template=CHATML + "<think>\n")
    chat = hf.load(folder, max_batch=2, threads=1)
    signs = tuple(map(chr, range(ord(" "), ord("~"))))
    [free, chosen] = ask(
        chat,
        (PROMPTS[0], Sampling(1.0, 40, seed=3, stop=signs)),
        (PROMPTS[0], Sampling(1.0, 40, choices=("yes", "no"))),
    )
    assert free.text.startswith("<think>") and any(sign in free.text[7:] for sign in signs)
    assert free.reasoning_tokens == 40  # it did not end
    assert (free.stop_reason, free.completion_tokens) == ("length", 40)
    assert chosen.text in ("yes", "no")
