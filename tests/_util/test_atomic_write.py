"""Files and folders that are written atomically, whatever fails on the way."""

import pytest

from agentsafe._util.atomic_write import whole_file, whole_folder


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "page.html"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_at_once(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with whole_folder(path) as partial:
        (partial / "new").touch()
        assert (path / "old").exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_may_read_a_folder_may_read_its_files(tmp_path):
    with whole_folder(tmp_path / "made") as partial:
        partial.chmod(0o750)
        for name, mode in (("own", 0o600), ("run", 0o700), ("sub/other", 0o600)):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).touch()
            (partial / name).chmod(mode)
        (partial / "link").symlink_to("nowhere")
    modes = [(tmp_path / "made" / name).stat().st_mode for name in ("own", "run", "sub/other")]
    assert [mode & 0o777 for mode in modes] == [0o640, 0o740, 0o640]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError), whole_folder(path) as partial:
        (partial / "new").touch()
        raise OSError
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["model", "a[b]c"])
def test_what_a_killed_writer_left_goes_and_what_others_write_stays(tmp_path, name):
    (tmp_path / f".{name}.1.partial").mkdir()
    (tmp_path / f".{name}.1.partial/weights").touch()
    (tmp_path / f".{name}.2.partial").touch()
    (tmp_path / ".other.1.partial").touch()
    (tmp_path / f".{name}.5-7b.1.partial").mkdir()
    with whole_folder(tmp_path / name):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        *(name, ".other.1.partial"),
        f".{name}.5-7b.1.partial",
    }
