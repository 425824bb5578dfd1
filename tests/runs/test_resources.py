"""The memory that a job asks for, from the models in its process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.runs.resources import PROCESS_MB, as_trained, billions, memory_mb


def model(name: str, **changes) -> dict:
    return {"model": name, "backend": "transformers", "dtype": "auto", "quantization": "none"} | (
        changes
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("meta-llama/Llama-3.3-70B-Instruct", 70),
        ("Qwen/Qwen2.5-7B-Instruct", 7),
        ("Qwen/Qwen3-0.6B", 0.6),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", 30),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56),
        ("openai/gpt-oss-20b", 20),
        ("microsoft/phi-4", 8),
        ("/data/my-checkpoint", 8),
        ("models/v2.3beta", 8),
    ],
)
def test_the_size_is_read_off_the_name(name, size):
    assert billions(name) == size


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, 16_000),
        ({"dtype": "float32"}, 32_000),
        ({"dtype": "bfloat16"}, 16_000),
        ({"quantization": "int8"}, 8_000),
        ({"quantization": "int4"}, 4_000),
        ({"backend": "vllm"}, 16_000),
        ({"backend": "openai"}, 0),
    ],
)
def test_memory_is_bytes_times_parameters_a_quarter_and_the_process(changes, weights):
    assert memory_mb([model("a-8b", **changes)], [None]) == PROCESS_MB + 1.25 * weights


@pytest.mark.parametrize(
    ("training", "served", "weights"),
    [
        ({"tuning": "lora"}, {"quantization": "int4"}, 16_000),
        ({"tuning": "lora"}, {"dtype": "float32"}, 16_000),
        ({"tuning": "lora"}, {"backend": "openai", "lora": True}, 16_000),
        ({"tuning": "full"}, {}, 32_000),
        ({"tuning": "full", "weights_dtype": "bfloat16"}, {}, 16_000),
    ],
)
def test_training_reads_weights_as_it_trains_them(training, served, weights):
    trained = as_trained(model("a-8b", **served), {"weights_dtype": "float32"} | training)
    assert memory_mb([trained], [None]) == PROCESS_MB + 1.25 * weights


def test_models_of_one_job_add_up_and_a_given_size_beats_the_name():
    assert memory_mb([], []) == PROCESS_MB
    two = [model("a-8b"), model("b-70b", quantization="int4")]
    assert memory_mb(two, [None, 40.0]) == PROCESS_MB + 1.25 * (16_000 + 20_000)


@given(st.lists(st.floats(0.01, 1000), max_size=3))
def test_a_larger_model_never_asks_for_less(sizes):
    models = [model("a")] * len(sizes)
    assert memory_mb(models, [2 * size for size in sizes]) >= memory_mb(models, sizes) >= PROCESS_MB
