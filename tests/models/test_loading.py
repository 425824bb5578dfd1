"""Loading models from checkpoint folders: dtypes, LoRA adapters, and folders that do not load."""

import importlib.util
import json
import shutil
import sys

import pytest

from agentsafe.errors import UserError
from agentsafe.models import loading
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """An adapter of the tiny model whose weights are not zero."""
    return write_adapter(folder, tmp_path_factory.mktemp("adapter"))


def write_adapter(folder, path, **options):
    torch.manual_seed(3)
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **options
    )
    peft.get_peft_model(loading.load_model(folder), lora).save_pretrained(path)
    return path


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def complaint(folder, **how):
    with pytest.raises(UserError) as refused:
        loading.load_model(folder, **how)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_weights_have_the_type_that_was_asked_for(folder, dtype, found):
    if dtype == "auto" and torch.cuda.is_available():
        pytest.skip("a GPU takes the type that was saved")
    model = loading.load_model(folder, dtype=dtype)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, found)}
    assert not model.training


def test_on_a_cpu_weights_saved_in_half_precision_are_float32(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    loading.load_model(folder, dtype="bfloat16").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert loading.load_model(tmp_path).dtype == torch.float32


def test_an_adapter_changes_logits_as_peft_does(folder, adapter):
    base = loading.load_model(folder)
    ours = loading.load_model(folder, adapter=adapter)
    theirs = peft.PeftModel.from_pretrained(loading.load_model(folder), str(adapter)).eval()
    assert not ours.training
    assert (logits(ours) - logits(base)).abs().max() > 0.1
    assert torch.equal(logits(ours), logits(theirs))
    merged = theirs.merge_and_unload()
    assert torch.allclose(logits(ours), logits(merged), atol=1e-3)


def test_an_adapter_with_dropout_gives_the_same_each_time(folder, tmp_path):
    model = loading.load_model(folder, adapter=write_adapter(folder, tmp_path, lora_dropout=0.5))
    assert torch.equal(logits(model), logits(model))


def test_an_adapter_may_bring_layers_of_its_own(folder, tmp_path):
    path = write_adapter(folder, tmp_path, modules_to_save=["lm_head"])
    theirs = peft.PeftModel.from_pretrained(loading.load_model(folder), str(path)).eval()
    assert torch.equal(logits(loading.load_model(folder, adapter=path)), logits(theirs))


def rename(path):
    weights = load_file(path / "adapter_model.safetensors")
    other = {name.replace("layers", "blocks"): weight for name, weight in weights.items()}
    save_file(other, path / "adapter_model.safetensors")


def keep(number):
    def spoil(path):
        weights = load_file(path / "adapter_model.safetensors")
        save_file(dict(list(weights.items())[:number]), path / "adapter_model.safetensors")

    return spoil


def configure(**change):
    def spoil(path):
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    return spoil


def write(name, content):
    return lambda path: (path / name).write_bytes(content)


def remove(name):
    return lambda path: (path / name).unlink()


def pickle_weights(path):
    file = path / "adapter_model.safetensors"
    torch.save(load_file(file), path / "adapter_model.bin")
    file.unlink()


SPOILT = {
    "no weights": (remove("adapter_model.safetensors"), "no such weights file"),
    "pickled": (pickle_weights, "no such weights file"),
    "torn": (write("adapter_model.safetensors", b"x" * 100), "not a complete safetensors file"),
    "no config": (remove("adapter_config.json"), "adapter_config.json: not readable"),
    "torn config": (write("adapter_config.json", b"{"), "adapter_config.json: not readable"),
    "config of a list": (write("adapter_config.json", b"[]"), "must hold a JSON object"),
    "empty config": (write("adapter_config.json", b"{}"), "the adapter does not fit"),
    "other kind": (configure(peft_type="PROMPT_TUNING"), "the adapter does not fit"),
    "unknown kind": (configure(peft_type="NO_SUCH"), "the adapter does not fit"),
    "other modules": (configure(target_modules=["query"]), "the adapter does not fit"),
    "more modules": (keep(-1), "does not fit the model: 1 tensors are missing, left over"),
    "fewer modules": (configure(target_modules=["q_proj"]), "24 tensors are missing, left"),
    "nothing": (keep(0), "does not fit the model: 28 tensors are missing"),
    "other names": (rename, "does not fit the model: 56 tensors"),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_an_adapter_that_does_not_fit_is_said_in_one_line(folder, adapter, tmp_path, name):
    spoil, said = SPOILT[name]
    path = shutil.copytree(adapter, tmp_path / "adapter")
    spoil(path)
    line = complaint(folder, adapter=path)
    assert line.startswith(str(path)) and said in line


@pytest.mark.parametrize("other", [{"hidden": 16}, {"layers": 1}])
def test_an_adapter_of_another_model_is_refused(adapter, tmp_path, other):
    line = complaint(write_tiny_checkpoint(tmp_path / "other", **other), adapter=adapter)
    assert "of another shape" in line and line.endswith("was it trained on another model?")


def test_a_folder_of_no_adapter_is_refused(folder, tmp_path):
    assert "no such weights file" in complaint(folder, adapter=tmp_path / "gone")
    assert "no such weights file" in complaint(folder, adapter=folder)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantisation_needs_a_package_and_a_gpu(folder, tmp_path, monkeypatch, quantization):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    line = complaint(folder, quantization=quantization)
    assert line == (
        f"{folder}: {quantization} needs bitsandbytes: pip install 'agentsafe[quantization]'"
    )
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    if not importlib.util.find_spec("bitsandbytes"):
        (tmp_path / "bitsandbytes").mkdir()
        (tmp_path / "bitsandbytes/__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = complaint(folder, quantization=quantization)
    assert line == f"{folder}: {quantization} needs a GPU: write quantization: none"


def test_code_of_a_checkpoint_does_not_run(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "own")
    ran = tmp_path / "ran"
    (path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {
        "AutoModelForCausalLM": "modeling_own.Own",
        "AutoConfig": "modeling_own.Own",
    }
    config["model_type"] = "own"
    (path / "config.json").write_text(json.dumps(config))
    assert "cannot load the model" in complaint(path)
    assert not ran.exists()


def test_the_context_is_the_models_or_less(folder, tmp_path):
    config, tokenizer = loading.load_model(folder).config, tiny_tokenizer()
    assert loading.context(config, tokenizer, None) == 2048
    assert loading.context(config, tokenizer, 100) == 100
    assert loading.context(config, tokenizer, 4096) == 2048
    small = loading.load_model(write_tiny_checkpoint(tmp_path / "small", context=64))
    assert loading.context(small.config, tokenizer, None) == 64
    tokenizer.model_max_length = 77
    assert loading.context(transformers.BloomConfig(), tokenizer, None) == 77  # has none of its own


def test_the_tokens_that_end_a_turn_are_those_of_serving(folder, tmp_path):
    from agentsafe.inference.stop_strings import Texts

    copy, tokenizer = shutil.copytree(folder, tmp_path / "copy"), loading.load_tokenizer(folder)
    for ends in (None, 3, [3, 4]):
        if ends is not None:
            (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        texts = Texts(loading.load_model(copy), tokenizer)
        found = loading.end_tokens(copy, tokenizer)
        assert found == {token for token in range(len(tokenizer)) if texts.end([token], ())}


def legacy_tokenizer(folder):
    """A tokenizer of the Llama kind: a blank begins each text, also after a special token."""
    vocab = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "["])}
    model = tokenizers.models.BPE(vocab=vocab, merges=[], unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": "-"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_copied_tokenizer_makes_the_same_tokens(folder, tmp_path):
    """Saved again by transformers, it would not."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    shutil.copytree(folder, theirs, ignore=shutil.ignore_patterns("*token*", "chat_template*"))
    shutil.copytree(theirs, ours)
    legacy_tokenizer(theirs)
    (theirs / "additional_chat_templates").mkdir()
    (theirs / "additional_chat_templates/tools.jinja").write_text("--")
    loading.copy_tokenizer(theirs, ours)
    loaded = [loading.load_tokenizer(each) for each in (theirs, ours)]
    tokens = [each.convert_ids_to_tokens(each("<s>[a")["input_ids"][-4:]) for each in loaded]
    assert tokens[0] == tokens[1] == ["<s>", "▁", "[", "a"]
    files = [sorted(path.name for path in each.rglob("*")) for each in (theirs, ours)]
    assert files[0] == files[1]
