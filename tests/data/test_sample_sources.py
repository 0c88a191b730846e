# SPDX-License-Identifier: Apache-2.0
"""Samples from texts, pictures, tables and a concepts.yaml."""

import json

import pytest

from tests.places import TINY
from vllm_sauce.data.sample_sources import find_samples
from vllm_sauce.data.samples import (
    PROMPT,
    PictureFile,
    Sample,
    distinct,
    open_picture,
)
from vllm_sauce.errors import ActivationsError, ConfigError


def test_each_line_of_a_text_file_is_a_sample(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n  two \n")
    samples = find_samples(texts=file)
    assert [(s.key, s.prompt) for s in samples] == [
        ("texts.txt#0", "one"),
        ("texts.txt#2", "two"),
    ]
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no text"):
        find_samples(texts=file)


def test_each_picture_is_asked_each_prompt():
    pictures = TINY / "pictures"
    count = len(list(pictures.glob("*.png")))
    assert count > 10
    plain = find_samples(pictures=pictures)
    assert len(plain) == count
    assert {sample.prompt for sample in plain} == {PROMPT}
    twice = find_samples(pictures=pictures, prompts=("a", "b"))
    assert len(twice) == len({sample.key for sample in twice}) == 2 * count


def test_a_tables_own_words_are_what_is_asked(tmp_path):
    table = tmp_path / "t.jsonl"
    rows = [{"words": "what?"}, {"words": "why?"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    samples = find_samples(table=table, prompt_column="words", prompts=("never",))
    assert [sample.prompt for sample in samples] == ["what?", "why?"]


def test_a_concepts_file_brings_its_splits():
    file = TINY / "concepts.yaml"
    whole = find_samples(concepts=file)
    parts = [find_samples(concepts=file, split=s) for s in ("selection", "scoring")]
    assert 0 < len(parts[1]) < len(parts[0]) < len(whole)
    with pytest.raises(ConfigError, match="leave --prompt out"):
        find_samples(concepts=file, prompts=("a",))


def test_equal_samples_are_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"x")
    a, b = (PictureFile(tmp_path / f"{name}.png") for name in "ab")
    samples = [
        Sample(key="1", prompt="p", picture=a),
        Sample(key="2", prompt="p", picture=b),
        Sample(key="3", prompt="q", picture=b),
        Sample(key="4", prompt="p"),
        Sample(key="5", prompt="p", concepts=("dog",)),
    ]
    kept, dropped = distinct(samples)
    assert [sample.key for sample in kept] == ["1", "3", "4", "5"]
    assert dropped == {"2": "1"}
    with pytest.raises(ActivationsError, match="two samples have the key '1'"):
        distinct([samples[0], samples[0]])


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(ActivationsError, match="cannot read"):
        open_picture(PictureFile(tmp_path / "missing.png"))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ActivationsError, match=r"a.png is no picture"):
        open_picture(PictureFile(tmp_path / "a.png"))
