# SPDX-License-Identifier: Apache-2.0
"""Text is cut at line ends alone, and half characters are seen."""

import pytest

from vllm_sauce.files import check_unicode, read_lines, writable


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
