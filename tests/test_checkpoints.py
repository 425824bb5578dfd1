"""Checkpoints that are whole load; every way of not being whole is said in one line."""

import json
import shutil

import pytest

from agentsafe import checkpoints
from agentsafe.errors import UserError
from tests.tiny_model import write_tiny_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def stop_in_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def scramble_header(folder):
    path = folder / "model.safetensors"
    text = bytearray(path.read_bytes())
    text[8:40] = b"\xff" * 32
    path.write_bytes(text)


def forget_offsets(folder):
    header = json.dumps({"weight": {"dtype": "F32"}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remove(*names):
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def lose_a_shard(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write("model.safetensors.index.json", json.dumps(index))(folder)


BROKEN = {
    "cut": (cut_weights, "but its header says"),
    "cut in the header": (stop_in_header, "no whole safetensors file"),
    "empty": (empty_weights, "no whole safetensors file"),
    "corrupt header": (scramble_header, "header is corrupt"),
    "no offsets": (forget_offsets, "header is corrupt"),
    "pickled": (pickle_weights, "save_pretrained, which writes safetensors"),
    "no weights": (remove("model.safetensors"), "no \\*.safetensors weights"),
    "lost shard": (lose_a_shard, "model-2.safetensors: no such weights file"),
    "no config": (remove("config.json"), "no config.json"),
    "torn config": (write("config.json", "{"), "config.json: not readable as JSON"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "no template": (remove("chat_template.jinja"), "no chat template"),
    "untrained": (write("untrained.json", '{"reason": "no pair"}'), "was not trained: no pair"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_in_one_line(folder, name):
    spoil, said = BROKEN[name]
    spoil(folder)
    for read in (checkpoints.check, checkpoints.load_model, checkpoints.load_tokenizer):
        with pytest.raises(UserError, match=said) as caught:
            read(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_missing_folder_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        checkpoints.check(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_type": "no-such-model", "architectures": ["NoSuchModel"]},
            "cannot load the model",
        ),
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            "the weights lack .* of the config's tensors",
        ),
        ({"hidden_size": 64}, "cannot load the model"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}, "model_type": "own"}, "cannot load"),
    ],
)
def test_a_config_that_does_not_fit_is_said_in_one_line(folder, change, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        checkpoints.load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_torn_tokenizer_is_said_in_one_line(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot load the tokenizer") as caught:
        checkpoints.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_whole_checkpoint_loads_without_a_word(whole, capfd):
    model, tokenizer = checkpoints.load_model(whole), checkpoints.load_tokenizer(whole)
    assert not model.training
    assert model.dtype.is_floating_point and model.dtype.itemsize == 4
    assert tokenizer.decode(tokenizer("é <|im_end|>")["input_ids"]) == "é <|im_end|>"
    assert capfd.readouterr() == ("", "")


def test_an_untrained_folder_holds_its_reason_alone(folder):
    assert checkpoints.untrained(folder) is None
    checkpoints.write_untrained(folder, "no pair of β 0.1")
    assert [path.name for path in folder.iterdir()] == ["untrained.json"]
    assert checkpoints.untrained(folder) == "no pair of β 0.1"


def test_digests_tell_weights_apart(whole, folder):
    assert checkpoints.digests(whole) == checkpoints.digests(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    assert checkpoints.digests(whole) != checkpoints.digests(folder)
