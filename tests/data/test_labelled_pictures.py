# SPDX-License-Identifier: Apache-2.0
"""Folders of labelled pictures: read as they are, or refused with the line."""

import shutil

import pytest

from tiny.pictures import PICTURE_FOLDER, shipped_pictures
from vllm_sauce.data.labelled_pictures import read_labelled
from vllm_sauce.data.samples import PROMPT
from vllm_sauce.errors import ConfigError


def test_the_shipped_pictures_are_read():
    samples, shipped = read_labelled(PICTURE_FOLDER), shipped_pictures()
    assert [s.concepts for s in samples] == [p.concepts for p in shipped]
    assert samples[3].picture is not None
    assert samples[3].picture.read() == shipped[3].file.read_bytes()
    assert {s.prompt for s in samples} == {PROMPT}


GOOD = '{"file": "a.png", "concepts": ["dog"], "prompt": "What?"}\n'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "names no picture"),
        (GOOD + "{", "line 2"),
        (GOOD + '{"file": "a.png"}', "line 2: concepts"),
        (GOOD + '{"file": "a.png", "concepts": "dog"}', "line 2: concepts"),
        (GOOD + '{"file": "b.png", "concepts": []}', "no picture .*b.png"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_bad_labels_are_refused(text, wanted, tmp_path):
    shutil.copy(PICTURE_FOLDER / "000.png", tmp_path / "a.png")
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "labels.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=wanted):
        read_labelled(tmp_path)
    (tmp_path / "labels.jsonl").write_text(GOOD + "\n")
    (sample,) = read_labelled(tmp_path)
    assert (sample.key, sample.prompt, sample.concepts) == ("a.png", "What?", ("dog",))
