"""vLLM's arguments and outputs; checked with its own classes where it is installed."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentsafe.errors import ServerTrouble, UserError
from agentsafe.inference.served import served
from agentsafe.inference.types import Completion, Sampling
from agentsafe.inference.vllm_protocol import (
    Prompt,
    base_and_adapter,
    choice_probabilities,
    completion,
    engine_arguments,
    parameters,
    sampling_arguments,
    scoring_arguments,
)
from agentsafe.models import checkpoint
from agentsafe.models.config import Model
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_checkpoint

MODEL = Model("some/model", backend="vllm", concurrency=32, memory_fraction=0.5, context=4096)


@dataclass
class Output:
    """The fields of vLLM's `CompletionOutput` that are read."""

    token_ids: list[int]
    finish_reason: str = "stop"
    stop_reason: int | str | None = None
    logprobs: list[dict] = field(default_factory=list)


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers")
    return tiny_tokenizer()


def adapter(folder, **config):
    """Write the files of a LoRA adapter that are read."""
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"weight": np.zeros(3)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_engine_is_asked_for_what_the_entry_says():
    assert engine_arguments("mine", MODEL, "folder") == {
        "model": "folder",
        "dtype": "auto",
        "quantization": None,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "max_model_len": 4096,
        "max_num_seqs": 32,
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": True,
        "seed": 0,
        "disable_log_stats": True,
    }


def test_without_a_context_vllm_finds_the_longest():
    assert engine_arguments("mine", Model("m", backend="vllm"), "f")["max_model_len"] == -1


def test_four_bits_are_bitsandbytes_and_eight_are_not_to_be_had():
    arguments = engine_arguments("mine", Model("m", backend="vllm", quantization="int4"), "f")
    assert (arguments["quantization"], arguments["load_format"]) == ("bitsandbytes",) * 2
    with pytest.raises(UserError, match=r"^models.mine.quantization: [^\n]*write int4"):
        engine_arguments("mine", Model("m", backend="vllm", quantization="int8"), "f")


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 8}, 8),
        ({"r": 16, "rank_pattern": {}}, 16),
        ({"r": 12, "rank_pattern": None}, 16),
        ({"r": 16, "rank_pattern": {"q_proj": 200, "k_proj": 4}}, 256),
        ({"r": 512}, 512),
    ],
)
def test_the_engine_is_ready_for_the_adapters_rank(tmp_path, config, rank):
    arguments = engine_arguments("mine", MODEL, "f", adapter(tmp_path, **config))
    assert arguments["max_lora_rank"] == rank
    assert (arguments["enable_lora"], arguments["max_loras"]) == (True, 1)


@pytest.mark.parametrize("config", [{}, {"r": None}, {"r": "16"}, {"r": 513}])
def test_a_rank_that_vllm_does_not_take_is_one_line(tmp_path, config):
    with pytest.raises(UserError, match=r"^models.mine.adapter: [^\n]*no rank up to 512"):
        engine_arguments("mine", MODEL, "f", adapter(tmp_path, **config))


def test_a_trained_checkpoint_is_served_as_its_base_and_its_adapter(tmp_path):
    pytest.importorskip("torch")
    base = write_tiny_checkpoint(tmp_path / "tiny", hidden=16)
    assert base_and_adapter(MODEL, str(base)) == (str(base), MODEL.adapter)
    trained = adapter(tmp_path, r=4)
    folder = Path(trained)
    digest = checkpoint.weights_digest(base)
    checkpoint.write_base(folder, base, at=folder, digest=digest)
    assert base_and_adapter(MODEL, trained) == (str(base), trained)
    checkpoint.write_base(folder, base, at=folder, digest="other")
    with pytest.raises(UserError, match="was trained on weights with the digest other"):
        base_and_adapter(MODEL, trained)


def test_an_adapter_without_weights_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such weights file"):
        engine_arguments("mine", MODEL, "f", str(tmp_path))


def test_a_turn_is_asked_for_with_its_own_seed_and_room():
    sampling = Sampling(0.7, 500, seed=3, stop=("\nObservation:",))
    assert sampling_arguments("mine", sampling, 20) == {
        "temperature": 0.7,
        "max_tokens": 20,
        "seed": 3,
        "stop": ["\nObservation:"],
        "include_stop_str_in_output": True,
    }
    constrained = sampling_arguments("mine", Sampling(choices=("yes", "no")), 20)
    assert constrained["structured_outputs"] == {"choice": ["yes", "no"]}


@pytest.mark.parametrize("seed", [-1, 0, 2**63 - 1, 2**63, 2**64 - 1, 2**70])
def test_every_seed_is_a_signed_number_and_none_is_left_out(seed):
    assert 0 <= sampling_arguments("mine", Sampling(1.0, seed=seed), 5)["seed"] < 2**63


@pytest.mark.parametrize("temperature", [0.0, 0.01, 2.0])
def test_temperatures_that_vllm_takes_are_handed_over(temperature):
    assert sampling_arguments("mine", Sampling(temperature), 5)["temperature"] == temperature


@pytest.mark.parametrize("temperature", [0.001, 2.1, math.nan])
def test_others_are_one_line(temperature):
    with pytest.raises(UserError, match=r"^models.mine: vLLM samples at [^\n]* 0.01 to 2"):
        sampling_arguments("mine", Sampling(temperature), 5)


def answered(tokenizer, text, sampling, room=20, end=(), cached=None, **output):
    tokens = tokenizer(text)["input_ids"] + list(end)
    found = SimpleNamespace(outputs=[Output(tokens, **output)], num_cached_tokens=cached)
    return completion(tokenizer, [found], Prompt([1] * 7), sampling, room)


def test_a_token_that_ends_a_turn_is_not_in_its_text(tokenizer):
    for stop_reason, end in ((None, tokenizer.eos_token_id), (88, 88)):
        found = answered(tokenizer, "Yes.", Sampling(), end=[end], stop_reason=stop_reason)
        assert replace(found, served=None) == Completion("Yes.", "stop", 7, 5)


def test_a_turn_is_cut_after_its_first_stop_string(tokenizer):
    sampling = Sampling(stop=("never there", "ion:", "\nOb"))
    found = answered(tokenizer, "Look.\nObservation: x", sampling, stop_reason="ion:")
    assert replace(found, served=None) == Completion("Look.\nOb", "stop", 7, 20)


def test_a_stop_string_inside_reasoning_does_not_end_a_turn(tokenizer):
    sampling, opened = Sampling(stop=("ion:",)), Prompt([1] * 7, thinking=True)
    first = SimpleNamespace(
        outputs=[Output(tokenizer("hm\nObservation:")["input_ids"], stop_reason="ion:")],
        num_cached_tokens=3,
    )
    found = completion(tokenizer, [first], opened, sampling, 512)
    assert (found.text, found.stop_reason) == ("<think>hm\nObservation:", "length")
    rest = SimpleNamespace(
        outputs=[Output(tokenizer("</think>Look.\nObservation:")["input_ids"], stop_reason="ion:")],
        num_cached_tokens=9,
    )
    found = completion(tokenizer, [first, rest], opened, sampling, 512)
    text = "<think>hm\nObservation:</think>Look.\nObservation:"
    counts = {"cached_tokens": 3, "reasoning_tokens": len("hm\nObservation:")}
    assert replace(found, served=None) == Completion(
        text, "stop", 7, len(text) - len("<think>"), **counts
    )
    chosen = Sampling(choices=("yes", "no"))
    ended = Output([*tokenizer("no")["input_ids"], tokenizer.eos_token_id])
    one = SimpleNamespace(outputs=[ended], num_cached_tokens=0)
    assert completion(tokenizer, [one], opened, chosen, 512).text == "no"


def test_a_turn_without_an_end_was_cut_at_its_limit_or_the_contexts(tokenizer):
    for limit, reason in ((4, "length"), (5, "context")):
        sampling = Sampling(max_tokens=limit)
        found = answered(tokenizer, "word", sampling, room=4, finish_reason="length")
        assert replace(found, served=None) == Completion("word", reason, 7, 4)


def test_the_tokens_of_a_turn_are_those_of_all_its_outputs(tokenizer):
    ends = tokenizer("Yes")["input_ids"], [*tokenizer(".")["input_ids"], tokenizer.eos_token_id]
    founds = [SimpleNamespace(outputs=[Output(each)], num_cached_tokens=0) for each in ends]
    found = completion(tokenizer, founds, Prompt([1] * 7), Sampling(), 20)
    assert found.served == served([1] * 7, [*ends[0], *ends[1]])


def test_prompt_tokens_from_the_prefix_cache_are_counted(tokenizer):
    assert answered(tokenizer, "Yes.", Sampling(), cached=6).cached_tokens == 6


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_a_turn_that_vllm_aborted_is_no_completion(tokenizer, reason):
    with pytest.raises(ServerTrouble, match="aborted a turn"):
        answered(tokenizer, "word", Sampling(), finish_reason=reason)


def scored(**logs):
    """Make an output with the given log-probabilities of the first token."""
    known = {int(token[1:]): SimpleNamespace(logprob=log) for token, log in logs.items()}
    return Output([9], logprobs=[known])


def test_shares_are_among_the_tokens_only():
    output = scored(t4=math.log(0.1), t5=math.log(0.3), t9=math.log(0.6))
    assert choice_probabilities(output, [5, 4]) == pytest.approx((0.75, 0.25))
    underflowing = scored(t4=-900.0, t5=-900.0)
    assert choice_probabilities(underflowing, [4, 5]) == (0.5, 0.5)
    assert choice_probabilities(scored(t4=-math.inf, t5=-3.0), [4, 5]) == (0.0, 1.0)


def test_what_is_no_number_has_no_shares():
    with pytest.raises(UserError, match="its weights are broken"):
        choice_probabilities(scored(t4=math.nan, t5=math.nan), [4, 5])


@pytest.fixture
def vllm():
    """VLLM itself, of the release that the backend was written against."""
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    assert vllm.__version__.startswith("0.30.")
    return vllm


def test_vllm_takes_what_it_is_asked(vllm, tmp_path):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind, SamplingType

    asked = engine_arguments("mine", MODEL, str(tmp_path), adapter(tmp_path, r=12))
    taken = AsyncEngineArgs(**asked)
    assert {key: getattr(taken, key) for key in asked} == asked

    sampling = Sampling(0.7, 500, seed=2**64 - 1, stop=("x",), choices=("yes", "no"))
    turn = parameters(sampling_arguments("mine", sampling, 20))
    assert (turn.temperature, turn.max_tokens, turn.seed) == (0.7, 20, 2**63 - 1)
    assert (turn.stop, turn.structured_outputs.choice) == (["x"], ["yes", "no"])
    assert turn.sampling_type == SamplingType.RANDOM_SEED
    assert turn.output_kind == RequestOutputKind.FINAL_ONLY
    score = parameters(scoring_arguments([3, 1, 2]))
    assert (score.logprob_token_ids, score.num_logprobs, score.max_tokens) == ([3, 1, 2], 3, 1)
    assert score.sampling_type == SamplingType.GREEDY
