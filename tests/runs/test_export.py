"""Exported checkpoints load with transformers and PEFT alone, and are the model that was played."""

import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from agentsafe.errors import UserError
from agentsafe.models import checkpoint, loading
from agentsafe.runs.export import export, main
from agentsafe.training.run_card import Card
from tests.helpers.tiny_model import write_tiny_checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SAFE = "tiny+safe.rules.b0.1.s0"
BOTH = "tiny+safe.rules.b0.1+both.rules.b0.1.s0"
IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results of a run with a source and a trained adapter, whose cards are written."""
    folder = tmp_path_factory.mktemp("results") / "mine"
    source, trained = (folder / "checkpoints" / name for name in ("tiny", SAFE))
    write_tiny_checkpoint(source, hidden=16)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(loading.load_model(source), lora).save_pretrained(trained)
    digest = checkpoint.weights_digest(source)
    checkpoint.write_base(trained, source, at=trained, digest=digest)
    (trained / "README.md").write_text("an adapter's card")
    card = Card(status="trained", lineage=SAFE, settings={"max_length": 9})
    for name in (SAFE, BOTH):
        (folder / "training").mkdir(exist_ok=True)
        replace(card, lineage=name).write(folder / "training" / f"{name}.json")
    checkpoint.write_untrained(folder / "checkpoints" / BOTH, "no pair")
    return folder


def logits(model):
    with torch.inference_mode():
        return model.eval()(IDS).logits


def same_as_played(model, run, lineage=SAFE):
    ours = logits(loading.load_model(run / "checkpoints" / lineage))
    return (logits(model) - ours).abs().max() < 1e-5


def test_merged_weights_load_with_transformers_alone(run, tmp_path):
    to = export(run, SAFE, "merged", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(to, local_files_only=True)
    assert same_as_played(model, run)
    assert transformers.AutoTokenizer.from_pretrained(to, local_files_only=True).chat_template
    card = ModelCard.load(to / "README.md")
    assert "This folder holds whole weights" in card.text and card.data.base_model == "tiny"
    checkpoint.check(to)
    assert not (to / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_an_adapter_loads_with_peft_on_the_base_that_it_names(run, tmp_path, kind):
    moved = shutil.copytree(run, tmp_path / "mine")
    if kind == "hub":
        origin = {"model": "maker/tiny", "backend": "transformers", "commit": "abc"}
        (moved / "checkpoints/tiny" / checkpoint.ORIGIN).write_text(json.dumps(origin))
    to = export(moved, SAFE, "adapter")
    assert to == moved / "exports" / f"{SAFE}.adapter"
    config = json.loads((to / "adapter_config.json").read_text())
    if kind == "folder":
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(to, local_files_only=True)
        assert same_as_played(adapted, run)
        assert config["base_model_name_or_path"] == str(moved / "checkpoints/tiny")
    assert transformers.AutoTokenizer.from_pretrained(to, local_files_only=True).chat_template
    assert (to / "README.md").read_text() == "an adapter's card"
    assert not (to / checkpoint.BASE).exists()


def test_16_bits_are_exported_in_16_bits_and_a_norm_in_32_as_it_was(run, tmp_path):
    from safetensors.torch import load_file, save_file

    moved = shutil.copytree(run, tmp_path / "mine")
    source, trained = moved / "checkpoints/tiny", moved / "checkpoints" / SAFE
    tensors = load_file(source / "model.safetensors")
    kept = {
        name: weight if name == "model.norm.weight" else weight.bfloat16()
        for name, weight in tensors.items()
    }
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    checkpoint.write_base(trained, source, at=trained, digest=checkpoint.weights_digest(source))
    to = export(moved, SAFE)
    assert loading.saved_dtypes(to) == loading.saved_dtypes(source)
    written = load_file(to / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])


def test_a_source_is_exported_as_it_is(run, tmp_path):
    to = export(run, "tiny", to=tmp_path / "out")
    assert checkpoint.digests(to) == checkpoint.digests(run / "checkpoints/tiny")
    assert same_as_played(loading.load_model(to), run, "tiny")


def test_what_cannot_be_exported_is_said_in_one_line(run, tmp_path):
    for arguments, said in [
        (("gone",), f"LINEAGE: .* has no 'gone'; its checkpoints: tiny, {SAFE[:5]}"),
        (("",), "LINEAGE: .* has no ''; its checkpoints: tiny"),
        ((BOTH,), "holds no model, as the run was not trained: no pair"),
        (("tiny", "adapter"), "holds whole weights and no adapter: write FORMAT=merged"),
        (("tiny", "gguf"), "FORMAT: gguf is none of merged, adapter"),
        (("tiny", "merged", tmp_path), "TO: .* exists already: name another folder"),
    ]:
        with pytest.raises(UserError, match=said.replace("+", r"\+")) as caught:
            export(run, *arguments)
        assert "\n" not in str(caught.value)
    assert not (run / "exports").exists()


def test_the_command_reads_the_runs_name_in_the_config(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("run: mine\n")
    (tmp_path / "results").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    main(["mine.yaml", "tiny", "", "out"])
    assert capsys.readouterr().out == "out\n"
    checkpoint.check("out")
