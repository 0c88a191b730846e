# SPDX-License-Identifier: Apache-2.0
"""Files are whole, locks tell who has them, text is cut at line ends alone."""

import errno
import hashlib
import os

import pytest

from vllm_sauce.errors import ActivationsError, ConfigError, LearnError
from vllm_sauce.files import (
    check_unicode,
    differences,
    file_sha256,
    locked,
    new_folder,
    read_lines,
    writable,
    write_whole,
)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, call):
    """And names it in the error that is asked for."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    write_whole(path, b"before", LearnError)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(LearnError, match=f"cannot write {path}: .*No space left"):
            write_whole(path, b"after", LearnError)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, b"after", LearnError)
    assert path.read_bytes() == b"after"
    assert file_sha256(path) == hashlib.sha256(b"after").hexdigest()


def test_a_folder_is_put_where_nothing_is(tmp_path):
    (tmp_path / ".folder.new").mkdir()
    (tmp_path / ".folder.new/left").write_text("by one that was killed")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "fresh").write_text("fresh")
        assert not (tmp_path / "folder").exists()
    with pytest.raises(OSError), new_folder(tmp_path / "folder") as folder:
        (folder / "more").write_text("more")
    with pytest.raises(KeyError), new_folder(tmp_path / "other"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["fresh"]


def test_another_run_is_named(tmp_path):
    with (
        locked(tmp_path, ConfigError, wait=False),
        pytest.raises(ConfigError, match="another run is writing to"),
        locked(tmp_path, ConfigError, wait=False),
    ):
        raise AssertionError("two have the lock")
    with locked(tmp_path, ConfigError, wait=False):
        pass


def test_what_differs_from_a_run_is_named(tmp_path):
    file, run = tmp_path / "run.json", {"a": (1, 2), "b": None}
    assert differences(file, run) is None
    file.write_text('{"a": [1, 2]}')
    assert differences(file, run) == []
    assert differences(file, {"a": 1, "c": 2}) == ["a", "c"]
    for damaged in ("{", "[]", '"\\ud83d'):
        file.write_text(damaged)
        assert differences(file, run) == ["a damaged run.json"]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number, wait):
    def flock(file, how):
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(ActivationsError, match="cannot be locked .No locks avail") as e,
        locked(tmp_path, ActivationsError, wait=wait),
    ):
        raise AssertionError("there is no lock")
    assert "another run" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        (
            "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\n".encode(),
            ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"],
        ),
    ],
)
def test_lines_end_where_files_say(tmp_path, content, lines):
    file = tmp_path / "text"
    file.write_bytes(content)
    assert read_lines(file) == lines


def test_what_is_no_utf8_is_an_error(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfea")
    with pytest.raises(UnicodeDecodeError):
        read_lines(tmp_path / "text")
    with pytest.raises(OSError):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    "value", ["\ud83d", {"a": ["b", {"c": "x\ude00"}]}, {"\ud83d": 1}, ("\udcff",)]
)
def test_half_a_character_is_seen_anywhere(value):
    with pytest.raises(UnicodeError, match=r"half of one .*\\ud"):
        check_unicode(value)


def test_whole_text_is_left_alone():
    check_unicode({"a": ["\U0001f600", 1, None, b"\xff"], "b": {"c": "é\u2028"}})
    assert writable("row \ud83d \U0001f600") == "row \\ud83d \U0001f600"
