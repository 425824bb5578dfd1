"""Test the doctor's report on a machine, and its checks of a small model on the CPU."""

import math
from pathlib import Path

import pytest

from agentsafe.runs import doctor
from agentsafe.runs.doctor import FAILURE, OK, WARNING, Finding

torch = pytest.importorskip("torch")


def test_a_missing_package_is_a_failure_where_all_need_it_and_a_warning_elsewhere(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name in ("peft", "vllm") else "1.0")
    found = {each.subject: each for each in doctor.check_packages()}
    assert found["peft"] == (FAILURE, "peft", "missing", "pip install 'agentsafe[train]'")
    assert found["vllm"].state == WARNING and found["vllm"].fix == "pip install 'agentsafe[vllm]'"
    assert found["torch"] == (OK, "torch", "1.0", "")


@pytest.mark.parametrize(
    ("cuda", "driver", "hidden", "state", "fix"),
    [
        (None, False, None, WARNING, ""),
        ("13.0", False, None, WARNING, ""),
        (None, True, None, FAILURE, "install torch for CUDA"),
        ("13.0", True, None, FAILURE, "update the driver for CUDA 13.0"),
        ("13.0", True, "", FAILURE, "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu_is_said(monkeypatch, cuda, driver, hidden, state, fix):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = doctor._no_gpu(cuda, driver=driver)
    assert found.state == state and found.fix.startswith(fix)


@pytest.mark.parametrize(("free", "state"), [(80e9, OK), (73e9, OK), (60e9, WARNING), (0, WARNING)])
def test_memory_that_another_process_has_is_said(free, state):
    found = doctor.gpu_memory("GPU 0", "H100", free, 80e9)
    assert found.state == state and "of 80.0 GB free" in found.detail


@pytest.mark.parametrize(("free", "state"), [(1e8, FAILURE), (2e9, WARNING), (1e12, OK)])
def test_free_space_is_judged_by_what_runs_take(free, state):
    assert doctor.disk_space("disk of results", Path("/r"), free).state == state
    assert "HF_HOME" in doctor.disk_space("disk of the hub's cache", Path("/r"), 0).fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")
def test_bfloat16_is_looked_for_in_the_instructions():
    assert "has amx_bf16" in doctor.check_bfloat16(["fpu", "amx_bf16"]).detail
    assert "has no instructions for it" in doctor.check_bfloat16(["fpu", "avx2"]).detail


def test_the_hub_is_not_asked_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert doctor.check_hub() == (
        *(WARNING, "hub", "HF_HUB_OFFLINE is set", "unset it to download models"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("doctor")
    doctor.write_model(made / "model")
    return made


def test_a_model_that_computes_right_passes(folder):
    pytest.importorskip("trl")
    findings = {
        "generation": doctor.check_generation(folder / "model", "cpu"),
        "training": doctor.check_training(folder / "model"),
        "adapter": doctor.check_adapter(folder, "cpu"),
    }
    assert {each.state for each in findings.values()} == {OK}, findings
    assert findings["generation"].detail.startswith("4 of 4 texts")
    assert f"{math.log(2):.4f}" in findings["training"].detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_a_check_refuses_is_a_failure_with_its_line(tmp_path, monkeypatch):
    for name in ("generation", "training", "adapter"):
        found = Finding(OK, name, "")
        monkeypatch.setattr(doctor, f"check_{name}", lambda *_, found=found: found)
    *others, last = doctor.check_model(tmp_path, "cpu", int4=True)
    assert [each.state for each in others] == [OK] * 3
    assert last.state == FAILURE and last.subject == "int4" and "int4 needs" in last.detail


def test_the_report_has_each_fix_and_its_status(capsys):
    assert doctor.report([Finding(OK, "a", "1"), Finding(WARNING, "b", "2", "do it")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["ok       a: 1", "warning  b: 2", "         fix: do it", "Nothing failed."]
    assert doctor.report([Finding(FAILURE, "a", "1")]) == 1
    assert capsys.readouterr().out.endswith("1 failed.\n")
