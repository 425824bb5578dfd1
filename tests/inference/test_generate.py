"""The generation loop against transformers' own, for several kinds of attention."""

import random

import pytest

torch = pytest.importorskip("torch")

import transformers

from agentsafe.errors import UserError
from agentsafe.inference.generate import (
    Prefix,
    Row,
    generate,
    is_supported,
)

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "grouped heads": lambda: transformers.LlamaConfig(**GROUPED),
    "sliding windows": lambda: transformers.Gemma2Config(
        **GROUPED, sliding_window=8, query_pre_attn_scalar=16
    ),
    "learned positions": lambda: transformers.GPT2Config(
        vocab_size=300, n_embd=64, n_layer=3, n_head=4, initializer_range=0.2, n_positions=128
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    config.eos_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


def alone(model, row):
    """Return the tokens that transformers' `generate` produces after the row's prompt."""
    ids = torch.tensor([row.prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=row.room,
        do_sample=False,
        pad_token_id=0,
    )
    return made[0, len(row.prompt) :].tolist()


def test_rows_of_any_length_end_and_history_say_what_generate_says(model):
    draw = random.Random(0)
    some = [[draw.randrange(3, 300) for _ in range(draw.randrange(3, 40))] for _ in range(6)]
    rows = [Row(prompt, draw.randrange(1, 12), 0.0, 0) for prompt in [*some, some[0], some[0]]]
    generate(model, rows, lambda row: False)
    for row in rows:
        assert row.tokens == alone(model, row)
        assert row.stop_reason == "length"
        assert row.prefix.ids == row.prompt + row.tokens[:-1]
    later = []
    for row in rows:  # the next turn; some of the last turns are cut after two tokens
        said = row.tokens[: draw.choice([2, 99])]
        new = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 9))]
        later.append(Row(row.prompt + said + new, 9, 0.0, 0, prefix=row.prefix))
    later.append(Row(some[3][:5], 4, 0.0, 0))
    ends = {id(row): draw.randrange(1, 10) for row in later}
    cached = [row.cached for row in later]
    assert all(cached[:-1])
    generate(model, later, lambda row: len(row.tokens) == ends[id(row)])
    for row in later:
        assert row.tokens == alone(model, row)[: ends[id(row)]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_a_user_error(model, temperature):
    with torch.no_grad():
        model.get_input_embeddings().weight[5].fill_(float("nan"))
    rows = [Row([7, 8, 9], 4, temperature, 0), Row([7, 5, 9], 4, temperature, 0)]
    with pytest.raises(UserError, match=r"logits are NaN.*make it again"):
        generate(model, rows, lambda row: False)


def test_a_prefix_covers_what_is_the_same_and_a_row_always_has_a_token_to_start_from():
    prefix = Prefix([1, 2, 3], [])
    assert [prefix.shared(ids) for ids in ([1, 2, 3, 4], [1, 9, 3], [2], [], [1, 2])] == [
        3, 1, 0, 0, 2,
    ]  # fmt: skip
    assert Row([1, 2, 3], 1, 0.0, 0, prefix=prefix).cached == 2
    assert Row([1, 2, 3], 1, 0.0, 0).cached == 0


def test_models_with_other_layers_than_attention_are_not_covered():
    assert is_supported(transformers.LlamaConfig(**GROUPED))
    assert is_supported(CONFIGS["sliding windows"]())
    hybrid = transformers.Qwen3NextConfig(num_hidden_layers=4)
    assert not is_supported(hybrid)
