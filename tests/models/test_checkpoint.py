"""Complete checkpoints load; every kind of incomplete one is an error of one line."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.models import checkpoint, loading
from tests.helpers.tiny_model import write_tiny_checkpoint


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


def with_header(header):
    """Write weights that consist of a header alone."""
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text
    return lambda folder: (folder / "model.safetensors").write_bytes(whole)


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remove(*names):
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def index(*files):
    """Write an index with a tensor in each of the files."""
    weight_map = {str(number): name for number, name in enumerate(files)}
    return write(INDEX, json.dumps({"weight_map": weight_map}))


def in_config_alone(template):
    """Put the chat template into the tokenizer's config instead of its own file."""

    def spoil(folder):
        (folder / "chat_template.jinja").unlink()
        write("tokenizer_config.json", json.dumps(template))(folder)

    return spoil


INDEX = "model.safetensors.index.json"
OFFSETS = {
    "no offsets": {},
    "text": {"data_offsets": [0, "x"]},
    "true": {"data_offsets": [0, True]},
    "float": {"data_offsets": [0, 4.0]},
    "negative": {"data_offsets": [0, -1]},
    "endless": {"data_offsets": [0, 10**4000]},
    "one": {"data_offsets": [0]},
    "null": None,
}
BROKEN = {
    "cut": (cut_weights, "but its header gives"),
    "cut in the header": (stop_in_header, "not a complete safetensors file"),
    "empty": (empty_weights, "not a complete safetensors file"),
    "corrupt header": (scramble_header, "header is corrupt"),
    **{
        f"offsets: {name}": (with_header({"weight": entry}), "header is corrupt")
        for name, entry in OFFSETS.items()
    },
    "header of a list": (with_header([1]), "header is corrupt"),
    "pickled": (pickle_weights, "save_pretrained, which writes safetensors"),
    "no weights": (remove("model.safetensors"), "no \\*.safetensors weights"),
    "lost shard": (
        index("model.safetensors", "model-2.safetensors"),
        "index.json: it names the weights file 'model-2.safetensors', which does not exist",
    ),
    "shard elsewhere": (index("../copy/model.safetensors"), "names the weights file .*not exist"),
    "shard of pickles": (index("config.json"), "names the weights file .*not exist"),
    "shard with a long name": (index("x" * 5000), "names the weights file .*not exist"),
    "shard with an odd name": (index("\0\n\ud800"), "names the weights file .*not exist"),
    "shard that is no name": (index(5), "no 'weight_map'"),
    "empty index": (write(INDEX, "{}"), "index.json: no 'weight_map'"),
    "index of nothing": (index(), "no 'weight_map'"),
    "index of a list": (write(INDEX, "[]"), "index.json: must hold a JSON object, not list"),
    "no config": (remove("config.json"), "no config.json"),
    "torn config": (write("config.json", "{"), "config.json: not readable as JSON"),
    "config of a list": (write("config.json", "[]"), "config.json: must hold a JSON object"),
    "nested config": (write("config.json", "[" * 10**5), "config.json: not readable as JSON"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "no template": (remove("chat_template.jinja"), "no chat template"),
    "tokenizer config of a list": (in_config_alone([]), "tokenizer_config.json: must hold a JSON"),
    "template that is a number": (in_config_alone({"chat_template": 5}), "no chat template"),
    "untrained": (write("untrained.json", '{"reason": "no pair"}'), "was not trained: no pair"),
    "untrained, in two lines": (
        write("untrained.json", '{"reason": "no\\npair"}'),
        "was not trained: no pair",
    ),
    "no reason": (write("untrained.json", "{}"), "untrained.json: it gives no 'reason'"),
    "empty reason": (write("untrained.json", '{"reason": " "}'), "json: it gives no 'reason'"),
    "reason that is a number": (write("untrained.json", '{"reason": 0}'), "gives no 'reason'"),
    "untrained of a list": (write("untrained.json", "[]"), "untrained.json: must hold a JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_in_one_line(folder, name):
    spoil, said = BROKEN[name]
    spoil(folder)
    for read in (checkpoint.check, loading.load_model, loading.load_tokenizer):
        with pytest.raises(UserError, match=said) as caught:
            read(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def around(*keys):
    """Generate JSON that is valid down to some key, so that the value below it is read."""
    shapes = anything
    for key in reversed(keys):
        shapes |= st.fixed_dictionaries({key: shapes})
    return shapes


files = st.one_of(
    st.tuples(st.just(INDEX), around("weight_map", "a")),
    st.tuples(st.just("model.safetensors"), around("a", "data_offsets")),
    st.tuples(st.just("tokenizer_config.json"), around("chat_template")),
    st.tuples(st.just("untrained.json"), around("reason")),
    st.tuples(st.just("config.json"), anything),
)


@given(files)
def test_whatever_one_file_holds_is_fine_or_said_in_one_line(whole, tmp_path_factory, file):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("any") / "copy")
    (folder / "chat_template.jinja").unlink()
    name, content = file
    weights = name == "model.safetensors"
    (with_header(content) if weights else write(name, json.dumps(content)))(folder)
    try:
        checkpoint.check(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_shards_that_an_index_names_are_the_weights(folder):
    index("model.safetensors")(folder)
    checkpoint.check(folder)
    assert checkpoint.weights(folder) == [folder / "model.safetensors"]


def test_a_missing_folder_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        checkpoint.check(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_type": "no-such-model", "architectures": ["NoSuchModel"]},
            "cannot load the model",
        ),
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            "the weights lack .* tensors of the config",
        ),
        ({"hidden_size": 64}, "cannot load the model"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}, "model_type": "own"}, "cannot load"),
    ],
)
def test_a_config_that_does_not_fit_is_said_in_one_line(folder, change, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        loading.load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_torn_tokenizer_is_said_in_one_line(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot load the tokenizer") as caught:
        loading.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_whole_checkpoint_loads_without_a_word(whole, capfd):
    model, tokenizer = loading.load_model(whole), loading.load_tokenizer(whole)
    assert not model.training
    assert model.dtype.is_floating_point and model.dtype.itemsize == 4
    assert tokenizer.decode(tokenizer("é <|im_end|>")["input_ids"]) == "é <|im_end|>"
    assert capfd.readouterr() == ("", "")


def test_an_untrained_folder_holds_its_reason_alone(folder):
    assert checkpoint.untrained(folder) is None
    checkpoint.write_untrained(folder, "no pair of β 0.1")
    assert [path.name for path in folder.iterdir()] == ["untrained.json"]
    assert checkpoint.untrained(folder) == "no pair of β 0.1"


def test_digests_tell_weights_apart(whole, folder):
    assert checkpoint.digests(whole) == checkpoint.digests(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    assert checkpoint.digests(whole) != checkpoint.digests(folder)


def test_a_fingerprint_is_of_names_and_bytes_and_not_of_times_or_folders_below(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"abc")
        (tmp_path / name / "adapter" / "x").write_text(name)
    assert checkpoint.fingerprint(tmp_path / "one") == checkpoint.fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"abd")
    assert checkpoint.fingerprint(tmp_path / "one") != checkpoint.fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "two" / "m.safetensors")
    assert checkpoint.fingerprint(tmp_path / "one") != checkpoint.fingerprint(tmp_path / "two")


def test_an_origin_stands_for_the_files_that_it_names(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "origin.json").write_text('{"commit": "abc"}')
        (tmp_path / name / "model.safetensors").write_text(name)
    one = checkpoint.fingerprint(tmp_path / "one")
    assert one == checkpoint.fingerprint(tmp_path / "two")
    (tmp_path / "two" / "origin.json").write_text('{"commit": "abd"}')
    assert one != checkpoint.fingerprint(tmp_path / "two")
    (tmp_path / "one" / "model.safetensors").unlink()  # as that of a model on a server
    assert one == checkpoint.fingerprint(tmp_path / "one")
