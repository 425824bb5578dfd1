"""Suites from files: downloads that fail in many ways, and the selection of cases."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentsafe.errors import UserError
from agentsafe.suites import toolemu
from agentsafe.suites.cases import Case, Tool, Toolkit, checked_suite, write_suite

CONTENT = b'[{"name": "official_0"}]' * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = "toolemu.cases_file"


class Answers(BaseHTTPRequestHandler):
    """A server of one file that can fail in many ways."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/gone":
            return self.send_error(404)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path == "/hangup":
            self.close_connection = True  # without an answer
            return None
        content = b"another file" if self.path == "/other" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/half" else content)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def complaint(work):
    with pytest.raises(UserError) as refused:
        work()
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", ["good", "moved"])
def test_a_file_is_fetched_whole(server, tmp_path, path):
    toolemu.fetch_suite(f"{server}/{path}", tmp_path / "below" / "a.json", SHA256, KEY)
    assert (tmp_path / "below" / "a.json").read_bytes() == CONTENT
    assert len(list((tmp_path / "below").iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone", "Not Found"),
        ("half", "IncompleteRead(120000 bytes read, 120000 more expected)"),
        ("hangup", "without response"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(server, tmp_path, path, said):
    url = f"{server}/{path}"
    line = complaint(lambda: toolemu.fetch_suite(url, tmp_path / "a.json", SHA256, KEY))
    assert line.startswith(f"{KEY}: cannot fetch {url} (") and said in line
    assert line.endswith("without a network, set it to the path of a file that you have")
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_was_meant_is_refused(server, tmp_path):
    (tmp_path / "a.json").write_text("as before")
    line = complaint(
        lambda: toolemu.fetch_suite(f"{server}/other", tmp_path / "a.json", SHA256, KEY)
    )
    found = hashlib.sha256(b"another file").hexdigest()
    assert f"{found[:16]}…, not {SHA256[:16]}…" in line
    assert line.endswith("fix toolemu.url or toolemu.cases_sha256")
    assert (tmp_path / "a.json").read_text() == "as before"


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.json"
        line = complaint(lambda: toolemu.fetch_suite(url, tmp_path / "a.json", SHA256, KEY))
    assert "Connection refused" in line


@pytest.mark.parametrize("url", ["http://[::1/a", "http://h:port/a", "http:///a", "http://a b/c"])
def test_an_address_that_is_none_is_said_in_one_line(tmp_path, url):
    line = complaint(lambda: toolemu.fetch_suite(url, tmp_path / "a.json", SHA256, KEY))
    assert line.startswith(f"{KEY}: cannot fetch {url} (")


def write(folder, names, toolkits=("Eyes",)):
    """Write a suite's two files, with cases of these names in this order."""
    made = [Case(name, ("Eyes",), f"Look at {name}.") for name in names]
    kits = [Toolkit(name, "", (Tool(f"Look{name}", "Looks."),)) for name in toolkits]
    files = folder / "cases.json", folder / "toolkits.json"
    write_suite(checked_suite(made, kits), *files)
    return files


def test_as_many_cases_are_taken_as_are_used_and_all_toolkits(tmp_path):
    files = write(tmp_path, [f"c_{n}" for n in (2, 0, 11, *range(3, 11), 1)], ("Eyes", "Ears"))
    for number in (1, 3, 12):
        suite = toolemu.take_suite(*files, number)
        assert [case.case_id for case in suite.cases] == [f"c_{n}" for n in range(number)]
        assert [*suite.toolkits] == ["Eyes", "Ears"]


def test_a_case_has_the_user_and_time_of_the_run_unless_it_has_its_own(tmp_path):
    files = write(tmp_path, ["c_0", "c_1"])
    cases = json.loads(files[0].read_text())
    cases[1] |= {"User": "Ada", "Current Time": "noon"}
    files[0].write_text(json.dumps(cases))
    told = toolemu.take_suite(*files, 2, user="Bob", now="midnight").cases
    assert [(case.user, case.now) for case in told] == [("Bob", "midnight"), ("Ada", "noon")]
    assert [(case.user, case.now) for case in toolemu.take_suite(*files, 2).cases] == [
        ("", ""),
        ("Ada", "noon"),
    ]


def test_more_cases_than_there_are_cannot_be_taken(tmp_path):
    files = write(tmp_path, ["c_0", "c_1"])
    line = complaint(lambda: toolemu.take_suite(*files, 3))
    assert line == f"{files[0]}: it has 2 cases, but 'toolemu.cases' is 3"


@pytest.mark.parametrize(
    ("names", "missing", "before"),
    [
        (["c_0", "c_2"], 1, "c_2"),
        (["c_1", "c_2"], 0, "c_1"),
        (["c_0", "c_1", "d_1"], 2, "d_1"),
        (["c_0", "c_1", "c_01"], 2, "c_01"),
    ],
)
def test_gaps_in_the_cases_numbers_are_refused(tmp_path, names, missing, before):
    files = write(tmp_path, names)
    line = complaint(lambda: toolemu.take_suite(*files, 1))
    assert line.startswith(f"{files[0]}: ")
    assert f"number {missing} is missing (before '{before}')" in line


def test_files_that_are_none_are_refused(tmp_path):
    files = write(tmp_path, ["c_0"])
    assert "no such file" in complaint(lambda: toolemu.take_suite(tmp_path / "gone", files[1], 1))
    files[1].write_text("[")
    assert str(files[1]) in complaint(lambda: toolemu.take_suite(*files, 1))


def test_toolemu_is_144_cases(shared):
    folder = shared / "toolemu"
    suite = toolemu.take_suite(folder / "all_cases.json", folder / "all_toolkits.json", 144)
    table = toolemu.list_cases(suite)
    assert table.height == 144
    assert table.columns == [
        "case_id", "toolkits", "tools", "instruction", "left_unsaid", "risks", "achievements",
    ]  # fmt: skip
    assert table["case_id"].to_list() == [f"official_{n}" for n in range(144)]
    assert table["tools"].min() > 0
    raw = json.loads((folder / "all_cases.json").read_text())
    counts = {
        case["name"]: (
            sum(map(len, case["Underspecifications"].values())),
            len(case["Potential Risky Outcomes"]) + len(case["Potential Risky Actions"]),
            len(case["Expected Achievements"]),
        )
        for case in raw
    }
    found = table.select("case_id", "left_unsaid", "risks", "achievements").rows()
    assert {name: tuple(rest) for name, *rest in found} == counts
    assert table["toolkits"][0] == "Todoist"
    assert table.write_csv().count("official_") >= 144
