"""Read JSON files that may be broken: a dictionary, or one line that names the file."""

import pytest

from agentsafe._util.json import read_json
from agentsafe.errors import UserError


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[1]", b"null", b'"\xff"'])
def test_anything_else_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: [^\n]*JSON[^\n]*$"):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: not readable as JSON: [^\n]*$"):
        read_json(tmp_path / "none.json")
