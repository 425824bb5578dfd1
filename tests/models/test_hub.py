"""Checkpoint folders of other people's models, with a small hub served by the test."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentsafe.errors import UserError
from agentsafe.models import checkpoint, hub, loading
from agentsafe.models.config import Model
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import write_tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(whole, tmp_path):
    """The folder of a local model."""
    return shutil.copytree(whole, tmp_path / "mine")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "checkpoints" / "m"


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "lora"
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


def take(folder, model, **settings):
    hub.fetch_model("m", Model(str(model), **settings), folder)
    return json.loads((folder / "origin.json").read_text())


def refused(folder, model, **settings):
    """Return the error for a model, and check that it leaves no files."""
    with pytest.raises(UserError) as error:
        take(folder, model, **settings)
    assert not folder.parent.exists() or [*folder.parent.iterdir()] == []
    line = str(error.value)
    assert "\n" not in line
    return line


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_local_folder_becomes_links_and_an_origin(model, folder):
    (model / "below").mkdir()
    origin = take(folder, model)
    names = {path.name for path in model.iterdir() if path.is_file()}
    assert {path.name for path in folder.iterdir()} == {*names, "origin.json"}
    for name in names:
        assert (folder / name).is_symlink() and (folder / name).resolve() == model / name
    assert origin == {
        "model": str(model),
        "backend": "transformers",
        "adapter": None,
        "files": {name: sha256(model / name) for name in names},
    }
    checkpoint.check(folder)
    loading.load_model(folder)
    assert loading.load_tokenizer(folder).chat_template


def test_a_folder_may_be_given_from_where_the_run_is(model, folder, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert take(folder, "mine")["model"] == "mine"
    monkeypatch.chdir(folder)
    checkpoint.check(folder)


def test_what_was_there_is_replaced(model, folder):
    folder.mkdir(parents=True)
    (folder / "stale.safetensors").touch()
    take(folder, model)
    assert not (folder / "stale.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_the_fingerprint_is_of_the_origins_content(model, folder):
    take(folder, model)
    before = checkpoint.fingerprint(folder)
    os.utime(model / "config.json", (1, 1))
    take(folder, model)
    assert checkpoint.fingerprint(folder) == before
    for name in ("config.json", "chat_template.jinja"):
        (model / name).write_text((model / name).read_text() + " ")
        take(folder, model)
        assert checkpoint.fingerprint(folder) != before
        before = checkpoint.fingerprint(folder)


def test_a_checkpoint_of_another_run_stays_as_it_is(model, folder, tmp_path):
    first = tmp_path / "first"
    take(first, model)
    before = (first / "origin.json").read_text()
    origin = take(folder, first)
    assert (first / "origin.json").read_text() == before
    assert not (folder / "origin.json").is_symlink()
    assert origin["model"] == str(first) and "origin.json" not in origin["files"]
    assert (folder / "config.json").resolve() == model / "config.json"


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "corrupted": (cut, "model.safetensors: "),
    "pickled": (pickle, "its weights are pickled"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    "untrained": (lambda folder: checkpoint.write_untrained(folder, "no pair"), "not trained"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_checkpoint_is_refused_by_its_own_name_and_leaves_nothing(model, folder, name):
    spoil, said = BROKEN[name]
    spoil(model)
    line = refused(folder, model)
    assert line.startswith(str(model)) and said in line


def test_an_adapter_is_part_of_the_origin(model, folder, adapter):
    plain = take(folder, model)
    origin = take(folder, model, adapter=str(adapter))
    assert origin["files"] == plain["files"]
    assert origin["adapter_files"] == {path.name: sha256(path) for path in adapter.iterdir()}
    before = checkpoint.fingerprint(folder)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    take(folder, model, adapter=str(adapter))
    assert checkpoint.fingerprint(folder) != before


def test_an_adapter_that_is_not_whole_is_refused(model, folder, adapter):
    (adapter / "adapter_config.json").unlink()
    line = refused(folder, model, adapter=str(adapter))
    assert line.startswith(f"{adapter}/adapter_config.json: no such file")


def test_a_trained_adapter_becomes_links_with_its_base_where_it_is(whole, folder, tmp_path):
    """The folder that it names is written again, as it is relative to the adapter's own."""
    peft = pytest.importorskip("peft")
    trained = tmp_path / "elsewhere" / "tiny+safe"
    lora = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(loading.load_model(whole), lora).save_pretrained(trained)
    digest = checkpoint.weights_digest(whole)
    checkpoint.write_base(trained, whole, at=trained, digest=digest)
    origin = take(folder, trained)
    assert {"adapter_model.safetensors", checkpoint.BASE} < origin["files"].keys()
    assert (folder / "adapter_model.safetensors").is_symlink()
    assert checkpoint.base_folder(folder).samefile(whole)
    assert checkpoint.base_digest(folder) == digest
    ours, theirs = (loading.load_model(each).state_dict() for each in (folder, trained))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert loading.load_tokenizer(folder).chat_template
    shutil.rmtree(folder)
    line = refused(folder, trained, adapter=str(trained))
    assert line == f"models.m.adapter: {trained} is an adapter itself: leave it out"


def test_a_model_on_a_server_is_its_origin_alone(folder):
    origin = take(folder, "gpt-5-mini", backend="openai", api_key_env="SOME_KEY")
    assert [path.name for path in folder.iterdir()] == ["origin.json"]
    assert origin == {"model": "gpt-5-mini", "backend": "openai", "adapter": None}


def test_a_key_tells_a_folders_files_apart(model):
    found = [hub.file_stats(str(model))]

    def changed():
        found.append(hub.file_stats(str(model)))
        return found[-1] != found[-2]

    assert not changed()
    os.utime(model / "config.json", ns=(1, 1))
    assert changed()
    (model / "config.json").write_text("{}")
    assert changed()
    (model / "more.txt").touch()
    assert changed()
    (model / "below").mkdir()
    (model / "dangling").symlink_to("nowhere")
    assert not changed()
    json.dumps(found)
    assert hub.file_stats("org/model") is None
    assert hub.file_stats(str(model / "config.json")) is None


REPOSITORIES = {"org/gated": "GatedRepo", "org/none": "RepoNotFound", "org/old": "RevisionNotFound"}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub that a download uses: one model, `org/tiny`, and refusals."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        for name, code in REPOSITORIES.items():
            if self.path.startswith(f"/api/models/{name}/"):
                return self.send(b"", 403 if code == "GatedRepo" else 404, {"X-Error-Code": code})
        if self.path.startswith("/api/models/org/lost"):
            self.close_connection = True  # without an answer
            return None
        if self.path.startswith("/api/models/org/page"):
            return self.send(b"<html>log in first</html>")
        files, at = self.server.files, f"/org/tiny/resolve/{COMMIT}/"
        if self.path.startswith("/api/models/org/tiny/revision/"):
            listed = [{"rfilename": name} for name in files]
            return self.send_json({"id": "org/tiny", "sha": COMMIT, "siblings": listed})
        if self.path.startswith("/api/models/org/tiny/tree/"):
            return self.send_json(
                [{"type": "file", "path": name, "size": len(text), "oid": "x"}
                 for name, text in files.items()]
            )  # fmt: skip
        if self.path.startswith(at):
            content = files[self.path.removeprefix(at)]
            etag = hashlib.sha1(content).hexdigest()
            return self.send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        return self.send(b"", 404, {})

    do_HEAD = do_POST = do_GET

    def send_json(self, content):
        self.send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def send(self, content, status=200, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(whole):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as serving:
        serving.asked = []
        serving.files = {path.name: path.read_bytes() for path in whole.iterdir()}
        serving.files |= {"pytorch_model.bin": b"pickled", "onnx/model.safetensors": b"other"}
        serving.files |= {"README.md": b"x", "consolidated.safetensors": b"again"}
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


FETCH = """
    import json, sys
    from agentsafe.errors import UserError
    from agentsafe.models import hub
    from agentsafe.models.config import Model

    for model in sys.argv[2:]:
        if model == "sizes":
            print(hub.sizes(Model("org/tiny")))
            continue
        try:
            hub.fetch_model("m", Model(model), sys.argv[1])
            print("fetched")
        except UserError as error:
            print(error)
"""


def taken(folder, models, **environment):
    """Fetch models in another process, as the hub's client reads its environment at import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FETCH), folder, *models],
        env={**kept, "HF_HOME": str(folder.parents[2] / "cache"), "no_proxy": "*", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert len(lines) == len(models)
    return lines


def test_a_model_of_the_hub_is_fetched_and_then_there_without_a_network(server, folder, whole):
    address = f"http://127.0.0.1:{server.server_port}"
    size = sum(path.stat().st_size for path in whole.iterdir())
    said = taken(folder, ["sizes", "org/tiny", "sizes"], HF_ENDPOINT=address)
    assert said == [str((size, size)), "fetched", str((size, 0))]
    expected = {path.name for path in whole.iterdir()} | {"origin.json"}
    assert {path.name for path in folder.iterdir()} == expected
    assert json.loads((folder / "origin.json").read_text())["commit"] == COMMIT
    loading.load_model(folder)
    before = checkpoint.fingerprint(folder)
    shutil.rmtree(folder)
    assert taken(folder, ["org/tiny", "sizes"], HF_HUB_OFFLINE="1") == ["fetched", "None"]
    assert checkpoint.fingerprint(folder) == before


def test_what_the_hub_refuses_is_said_in_one_line(server, folder):
    address = f"http://127.0.0.1:{server.server_port}"
    names = [*REPOSITORIES, "org/lost", "org/page", "no/such/folder", "a b"]
    gated, none, old, lost, page, path, odd = taken(folder, names, HF_ENDPOINT=address)
    assert gated.startswith("models.m.model: the hub requires you to") and "HF_TOKEN" in gated
    assert "neither a folder nor a hub model called 'org/none'" in none
    assert old == "models.m.revision: org/old has no revision 'None'"
    for line in (lost, page):
        assert "the hub is not reachable (" in line and line.endswith("or name a folder")
    for line in (path, odd):
        assert line.startswith("models.m.model: there is no folder '") and "valid hub id" in line
    assert not folder.exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "(HF_HUB_OFFLINE is set)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused)"),
        ({"HF_ENDPOINT": "http://nowhere.invalid"}, "([Errno -"),
    ],
)
def test_without_a_network_a_model_is_one_line_and_at_once(folder, environment, said):
    [line] = taken(folder, ["org/tiny"], **environment)
    assert line.startswith(
        "models.m.model: there is no folder 'org/tiny', the hub's cache does not have it, and the "
        "hub is not reachable ("
    )
    assert said in line and len(line) < 320
    assert line.endswith("and set HF_HOME to that cache, or name a folder")
    assert not folder.exists()
