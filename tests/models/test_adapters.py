"""Adapters of several stages as one: the same model as the stages merged one after the other."""

import json
import shutil

import pytest

from agentsafe.errors import UserError
from agentsafe.models import adapters, checkpoint, loading
from tests.helpers.published_shapes import SHAPES
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
IDS = torch.arange(40)[None]
SIZES = {
    **{"vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
#: Model types, and the settings of the three adapters that are put on them in a row.
CHAINS = {
    "plain": ("Qwen3", {}, [{"r": 4}, {"r": 4}, {"r": 4}]),
    "tied": ("Qwen3", {"tie_word_embeddings": True}, [{"r": 4}, {"r": 4}, {"r": 4}]),
    "other ranks and scales": (
        "Llama",
        {},
        [{"r": 2, "lora_alpha": 3}, {"r": 5, "use_rslora": True}, {"r": 3}],
    ),
    "other layers": (
        "Qwen3",
        {},
        [
            {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            {"r": 2, "target_modules": ["v_proj", "down_proj"]},
            {"r": 3, "target_modules": r".*\.1\.mlp\.up_proj"},
        ],
    ),
    "fused layers": ("Phi3", {}, [{"r": 4}, {"r": 4, "use_rslora": True}, {"r": 8}]),
    "experts": (
        "Qwen3Moe",
        EXPERTS,
        [
            {"r": r, "target_modules": ["q_proj"], "target_parameters": PARAMETERS}
            for r, PARAMETERS in [
                (2, ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]),
                (3, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
                (2, None),
            ]
        ],
    ),
    "router": (
        "Qwen3Moe",
        EXPERTS,
        [
            {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
            {"r": 2, "target_modules": ["v_proj"]},
            {"r": 2, "target_modules": [], "target_parameters": ["mlp.gate.weight"]},
        ],
    ),
}


def write_model(folder, kind, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(model, folder, **options):
    """Put a random adapter on a model, write it, and return the model with it merged."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    adapted = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **options))
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def write_chain(folder, kind, changes, stages):
    """Write a model and the adapters of stages in a row; return the model with all merged."""
    write_model(folder / "base", kind, **changes)
    model = loading.load_model(folder / "base")
    for number, options in enumerate(stages):
        model = write_adapter(model, folder / str(number), **options)
    return model


def compose(folder, stages):
    """Compose the adapters in `folder`, stage by stage, into a checkpoint."""
    composed = folder / "0"
    for number in range(1, stages):
        made = folder / f"composed-{number}"
        made.mkdir()
        adapters.compose(composed, folder / str(number), made, torch.float32)
        composed = made
    base = folder / "base"
    checkpoint.write_base(composed, base, at=composed, digest=checkpoint.weights_digest(base))
    return composed


def logits(model):
    with torch.inference_mode():
        return model.eval()(IDS).logits


def apart(one, other):
    """The largest difference of two models' logits, relative to the largest logit."""
    ours, theirs = logits(one), logits(other)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name", CHAINS)
def test_composed_stages_are_the_stages_merged_in_a_row(name, tmp_path):
    kind, changes, stages = CHAINS[name]
    merged = write_chain(tmp_path, kind, changes, stages)
    folder = compose(tmp_path, len(stages))
    base = loading.load_model(tmp_path / "base")
    assert apart(base, merged) > 0.1
    ours = loading.load_model(folder)
    assert apart(ours, merged) < 1e-5
    for (key, weight), other in zip(
        ours.state_dict().items(), merged.state_dict().values(), strict=True
    ):
        assert torch.allclose(weight, other, atol=1e-5), key
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert apart(peft.PeftModel.from_pretrained(base, str(folder)), merged) < 1e-5
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == sum(options["r"] for options in stages)


@pytest.mark.parametrize("name", [name for name in CHAINS if name not in ("experts", "router")])
def test_an_adapter_beside_frozen_layers_is_the_merged_one_and_trains_on(name, tmp_path):
    """As on quantised layers, whose weights cannot take an update."""
    kind, changes, stages = CHAINS[name]
    merged = write_chain(tmp_path, kind, changes, stages[:2])
    base = loading.load_model(tmp_path / "base")
    beside = adapters.put_beside(base, compose(tmp_path, 2))
    assert apart(beside, merged) < 1e-5
    lora = peft.LoraConfig(init_lora_weights=False, r=2, target_modules="all-linear")
    torch.manual_seed(1)
    on_merged = peft.get_peft_model(merged, lora)
    torch.manual_seed(1)
    trained = peft.get_peft_model(beside, lora)
    assert apart(trained, on_merged) < 1e-5
    for model in (trained, on_merged):
        model(IDS, labels=IDS).loss.backward()
    gradients = [
        {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        for model in (trained, on_merged)
    ]
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], atol=1e-4), key


def test_what_is_put_beside_layers_is_taken_off_again(tmp_path):
    kind, changes, stages = CHAINS["other layers"]
    write_chain(tmp_path, kind, changes, stages[:1])
    base = loading.load_model(tmp_path / "base")
    expected = logits(base)
    beside = logits(adapters.put_beside(base, tmp_path / "0"))
    assert not torch.equal(beside, expected)
    adapters.take_off(base)
    assert torch.equal(logits(base), expected)


@pytest.mark.parametrize("name", ["tied", "fused layers", "experts"])
def test_adapters_take_turns_on_a_base_that_is_loaded_once(tmp_path, caplog, name):
    kind, changes, stages = CHAINS[name]
    write_model(tmp_path / "base", kind, **changes)
    digest = checkpoint.weights_digest(tmp_path / "base")
    made = [tmp_path / "one", tmp_path / "other"]
    for folder in made:
        write_adapter(loading.load_model(tmp_path / "base"), folder, **stages[0])
        checkpoint.write_base(folder, tmp_path / "base", at=folder, digest=digest)
    expected = {folder: logits(loading.load_model(folder)) for folder in made}
    bases = {}
    with caplog.at_level("INFO"):
        for folder in (*made, made[0]):
            assert torch.equal(logits(loading.load_model(folder, bases=bases)), expected[folder])
        assert caplog.text.count("loading the weights of") == 1
        loading.load_model(tmp_path / "base", bases=bases)  # whole weights are not kept
        loading.load_model(made[0], bases=bases, dtype="bfloat16")  # nor two bases
    assert caplog.text.count("loading the weights of") == 3 and len(bases) == 1


def test_an_adapter_of_experts_cannot_be_put_beside_quantised_layers(tmp_path):
    kind, changes, stages = CHAINS["experts"]
    write_chain(tmp_path, kind, changes, stages[:1])
    with pytest.raises(UserError, match=r"on stacked experts, .* write quantization: none"):
        adapters.put_beside(loading.load_model(tmp_path / "base"), tmp_path / "0")


def test_other_experts_than_the_stage_before_are_refused():
    first, second = ({"target_parameters": [name]} for name in ("a.up", "a.down"))
    adapters.check_composable(first, first)
    adapters.check_composable(first, {"target_parameters": None})
    with pytest.raises(UserError, match=r"adapted a\.up, and this one would adapt a\.down"):
        adapters.check_composable(first, second)
    with pytest.raises(UserError, match="use_dora True cannot be composed"):
        adapters.check_composable({"use_dora": True}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base and an adapter of it."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_checkpoint(folder / "tiny", hidden=16)
    made = folder / "tiny+safe"
    write_adapter(loading.load_model(folder / "tiny"), made)
    digest = checkpoint.weights_digest(folder / "tiny")
    checkpoint.write_base(made, folder / "tiny", at=made, digest=digest)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of both, as the folders of a run that was moved."""
    return shutil.copytree(trained, tmp_path / "moved") / "tiny+safe"


def test_an_adapter_has_its_bases_tokenizer_configs_and_dtypes(trained):
    folder = trained / "tiny+safe"
    checkpoint.check(folder)
    assert loading.load_tokenizer(folder).chat_template
    assert loading.load_config(folder).hidden_size == 16
    assert loading.saved_dtype(folder) == torch.float32
    assert loading.saved_dtypes(folder) == loading.saved_dtypes(trained / "tiny")
    names = [path.name for path in checkpoint.weights(folder)]
    assert names == ["adapter_model.safetensors", "model.safetensors"]


def test_a_moved_run_finds_its_bases_and_stays_the_same(trained, copied):
    assert checkpoint.base_folder(copied) == copied.parent / "tiny"
    assert checkpoint.fingerprint(copied) == checkpoint.fingerprint(trained / "tiny+safe")
    assert apart(loading.load_model(copied), loading.load_model(trained / "tiny+safe")) == 0


def change_base(folder):
    path = folder.parent / "tiny" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def reconfigure(**change):
    def spoil(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return spoil


def cut_a_tensor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def rename(old, new):
    return lambda folder: (folder.parent / old).rename(folder.parent / new)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


SPOILT = {
    "other weights": (change_base, "was trained on weights with the digest .* holds weights with"),
    "no base": (rename("tiny", "gone"), "its adapter belongs to .*tiny, where there are no whole"),
    "itself": (
        write("adapter_base.json", '{"folder": "../tiny+safe/x/.."}'),
        "no config.json; is it the folder of a transformers model",
    ),
    "an adapter": (
        lambda folder: shutil.copy(folder / "adapter_base.json", folder.parent / "tiny"),
        "where there are no whole weights: make that checkpoint again",
    ),
    "no name": (write("adapter_base.json", "{}"), "adapter_base.json: it names no 'folder'"),
    "a number": (write("adapter_base.json", '{"folder": 5}'), "it names no 'folder'"),
    "no path": (write("adapter_base.json", '{"folder": "\\u0000"}'), "it names no 'folder'"),
    "torn": (write("adapter_base.json", "{"), "adapter_base.json: not readable as JSON"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors: no such weights file",
    ),
    "no config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "adapter_config.json: not readable",
    ),
    "other layers": (reconfigure(target_modules=["query"]), "the adapter does not fit the model"),
    "fewer layers": (
        reconfigure(target_modules=["q_proj"]),
        "24 tensors are missing or left over, first .*; was it trained on another model",
    ),
    "fewer tensors": (cut_a_tensor, "1 tensors are missing or left over"),
    "another rank": (reconfigure(r=3), "the adapter does not fit the model"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_does_not_fit_is_said_in_one_line(copied, name):
    spoil, said = SPOILT[name]
    spoil(copied)
    with pytest.raises(UserError, match=said) as caught:
        loading.load_model(copied)
    assert "\n" not in str(caught.value) and str(copied) in str(caught.value)


def with_origin(folder, **origin):
    (folder / checkpoint.ORIGIN).write_text(json.dumps({"backend": "transformers", **origin}))


def test_a_base_of_the_hub_is_known_by_its_commit(copied):
    """Its weights are not read for that, and a copy of them in a folder counts as well."""
    base = copied.parent / "tiny"
    with_origin(base, model="maker/tiny", commit="abc")
    digest = checkpoint.weights_digest(base)
    checkpoint.write_base(copied, base, at=copied, digest=digest)
    checkpoint.check_base(copied)
    with_origin(base, model="maker/tiny", commit="abd")
    with pytest.raises(
        UserError, match=r"on maker/tiny at commit abc, .* maker/tiny at commit abd"
    ):
        checkpoint.check_base(copied)
    with_origin(base, model="/data/tiny", files=checkpoint.digests(base))
    checkpoint.check_base(copied)
    with_origin(base, model="/data/tiny", files={"model.safetensors": "other"})
    with pytest.raises(UserError, match=r"trained on maker/tiny at commit abc, .* with the digest"):
        checkpoint.check_base(copied)


def test_a_fingerprint_is_of_the_base_too(copied):
    before = checkpoint.fingerprint(copied)
    (copied.parent / "tiny" / "chat_template.jinja").write_text("{{ messages }}")
    assert checkpoint.fingerprint(copied) != before
    before = checkpoint.fingerprint(copied)
    (copied / "stage").mkdir()
    (copied / "stage" / "adapter_config.json").write_text("{}")
    assert checkpoint.fingerprint(copied) == before


@pytest.mark.parametrize("kind", SHAPES)
def test_two_stages_of_a_large_model_take_less_than_two_percent(kind):
    """A lineage's files: the adapter of both stages, rank 32, and the second one's own, rank 16."""
    config = getattr(transformers, f"{kind}Config")(**SHAPES[kind])
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        whole = model.num_parameters()
        lora = peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, lora)
    one = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    # All tensors have the base's dtype, so that their numbers compare as their bytes do.
    assert 3 * one / whole < 0.02
