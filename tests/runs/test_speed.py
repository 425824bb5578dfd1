"""Compare speeds, by data sheets and by a calibration, with numbers counted by hand."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from agentsafe.experiment.check import check
from agentsafe.experiment.config import Resources
from agentsafe.runs.calibration import Calibration, Measured, Rate, Serving, Training
from agentsafe.runs.speed import Range, Speed, gpu_called, sheets, size_of, speeds
from agentsafe.runs.workload import Work

REMOTE = {"backend": "openai", "base_url_env": "X", "lora": True}
#: 64 calls of 1,000 tokens each.
WORK = Work("rollouts", "one", jobs=1, loads=1, calls=64, prompt=64 * 1000)
MEASURED = Measured(
    model="/nowhere/one-8B",
    backend="transformers",
    dtype="auto",
    quantization="none",
    parameters=8e9,
    active=8e9,
    start=10.0,
    load=4.0,
    serving=Serving(64, 1000, 100, Rate(1000, 900, 1100, 3), Rate(100, 90, 110, 3)),
    training=Training(
        *("pairs", 1, 1000, 800), Rate(300, 290, 310, 3), Rate(800, 780, 820, 3), 0.6931
    ),
)
CALIBRATION = Calibration(
    device="NVIDIA H100 80GB HBM3",
    gpu=True,
    memory=80_000_000_000,
    host="node",
    date="2026-12-01",
    threads=4,
    versions={},
    models={"one": MEASURED},
)


def config(gpu=None, **models):
    entries = {"one": {"model": "/nowhere/one-8B"}} | models
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "models": entries,
            "sources": ["one"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "one"}},
            "rollouts": {"batch": 64},
            "resources": {"gpu": gpu},
        }
    )


def speed(asked, calibration=None, name="one") -> Speed:
    return speeds(asked, [replace(WORK, model=name)], calibration)[name]


def close(found: Range, low: float, high: float) -> bool:
    return found == pytest.approx((low, high), rel=1e-3)


def test_a_config_can_name_every_gpu_of_the_table():
    named = get_args(get_args(get_type_hints(Resources)["gpu"])[0])
    assert set(named) == sheets().gpus.keys()
    assert all(gpu.source.startswith("https://") for gpu in sheets().gpus.values())
    assert sheets().gpus["h100"].flops == 989e12 and sheets().gpus["h200"].bandwidth == 4.8e12


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 PCIe", None),
        ("AMD EPYC", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(device, key):
    assert gpu_called(device) == key


def test_a_models_size_comes_from_its_name_where_its_config_cannot_be_had():
    asked = config(two={"model": "/nowhere/two-32B", "quantization": "int4"})
    assert size_of("one", asked).parameters == 8e9 and size_of("one", asked).bytes == 16e9
    two = size_of("two", asked)
    assert two.bytes == pytest.approx(32e9 * 0.5625) and two.cache == pytest.approx(262144)
    asked["resources"]["parameters"] = {"two": 30.0}
    assert size_of("two", asked).parameters == 30e9


def test_a_model_of_the_table_is_read_and_trained_by_arithmetic_and_writes_by_bandwidth():
    found = speed(config("h100"))
    # 989e12 FLOP/s over 2 * 8e9 FLOP a token, of which 20 to 60 % are reached
    assert close(found.prefill, 0.2 * 61812, 0.6 * 61812)
    # forward, gradients of activations, and activations once more: 3 times as much
    assert close(found.trained, 0.15 * 61812 / 3, 0.43 * 61812 / 3)
    assert close(found.scored, *found.prefill)
    # a step of 64 conversations reads 16 GB of weights and 64 * 1,000 * 131 kB: 24.4 GB
    assert close(found.generated, 0.1 * 8792, 0.4 * 8792)
    assert close(found.load, 8, 16 / 0.3) and found.start == (10, 40)
    assert found.basis == found.trained_basis == "data sheet"
    full = config("h100")
    full["training"]["tuning"] = "full"
    assert close(speed(full).trained, 0.15 * 61812 / 4, 0.43 * 61812 / 4)


def test_keys_and_values_have_to_fit_beside_the_weights():
    # 21.6 GB less 16 are 42 conversations of 131 MB
    found = speed(config("rtx-4090"))
    assert close(found.generated, 0.1 * 42 * 1.008e12 / 21.505e9, 0.4 * 42 * 1.008e12 / 21.505e9)


def test_a_server_has_larger_batches_and_does_better():
    here, served = (
        speed(config("h100")),
        speed(config("h100", one={"model": "/nowhere/8B", **REMOTE})),
    )
    assert served.generated.low > here.generated.high / 2 > here.generated.low
    assert served.prefill.high > here.prefill.high and served.trained == here.trained


def test_nothing_is_known_without_a_table_and_a_calibration():
    assert speeds(config(), [WORK], None) == {}


def test_what_was_measured_counts_for_the_model_itself():
    found = speed(config(), CALIBRATION)
    assert found.basis == found.trained_basis == "measured"
    assert close(found.prefill, 900 / 1.5, 1100 * 1.5)
    assert close(found.generated, 90 / 1.5, 110 * 1.5)
    assert close(found.trained, 290 / 1.5, 310 * 1.5)
    assert close(found.scored, 780 / 1.5, 820 * 1.5)
    assert close(found.load, 4 / 1.5, 6) and close(found.start, 10 / 1.5, 15)


def test_another_model_is_in_proportion_to_its_size():
    asked = config(two={"model": "/nowhere/two-32B"})
    found = speed(asked, CALIBRATION, "two")
    assert found.basis == found.trained_basis == "scaled"
    assert close(found.prefill, 900 / 4 / 2, 1100 / 4 * 2)
    assert close(found.trained, 290 / 4 / 2, 310 / 4 * 2)
    assert close(found.load, 16 / 2, 32)


def test_a_server_is_no_measure_of_a_model_in_the_job_where_the_table_has_the_gpu():
    asked = config(one={"model": "/nowhere/one-8B", **REMOTE})
    found = speed(asked, CALIBRATION)  # whose device the table has
    assert (found.basis, found.trained_basis) == ("data sheet", "measured")
    unknown = replace(CALIBRATION, device="NVIDIA B999")
    assert speed(asked, unknown).basis == "scaled"


def test_the_seconds_of_some_work_are_those_of_its_tokens_starts_and_loads():
    ranges = {name: Range(10, 20) for name in ("prefill", "generated", "trained", "scored")}
    some = Speed(**ranges, start=Range(1, 2), load=Range(3, 4), basis="", trained_basis="")
    work = Work("x", "one", jobs=2, loads=3, prompt=300, cached=100, generated=40, scored=60)
    # 300 tokens that no cache has, at 20 and at 10 a second
    assert some.seconds(work) == (15 + 2 * 1 + 3 * 3, 30 + 2 * 2 + 3 * 4)
