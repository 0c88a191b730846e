# SPDX-License-Identifier: Apache-2.0
"""Inputs as other programs write them: read as meant, and a bad row fails alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vllm.multimodal.media import ImageMediaIO

from tests.batch import stand_in
from tests.data.picture_kinds import readable, refused
from vllm_sauce.batch import run
from vllm_sauce.batch.chunks import read_chunk, split_parquet
from vllm_sauce.batch.rows import Row, read_row
from vllm_sauce.batch.settings import Defaults
from vllm_sauce.errors import ConfigError, InvalidRequestError


def answered(source: Path, out: Path, **changes: Any) -> tuple[list[Any], list[Any]]:
    """Run a batch with an engine's stand-in; return its rows and its failures."""
    job = replace(stand_in.JOB, **changes)
    run.run(job, stand_in.request(source, out), start=stand_in.start_echo)
    failures = out.with_name(f"{out.name}.failures.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in failures.split("\n") if line]
    return pq.read_table(out).to_pylist(), lines


def rows_of(table: pa.Table, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Return a table's rows as a run reads them."""
    pq.write_table(table, folder / "in.parquet", **options)
    columns = {*Row.model_fields}
    chunks = split_parquet(folder / "in.parquet", 3, folder / "spool", columns)
    read = [data for chunk in chunks for _, data in read_chunk(chunk)]
    return [data for data in read if isinstance(data, dict)]


HALVES: dict[str, tuple[str, str | None]] = {
    "id": ('{"id": "row \\ud83d", "prompt": "b"}', "row \\ud83d"),
    "meta": ('{"id": "m", "prompt": "b", "meta": {"t": ["x \\ud83d"]}}', "m"),
    "a key of meta": ('{"id": "m", "prompt": "b", "meta": {"\\ude00": 1}}', "m"),
    "prompt": ('{"prompt": "cut \\ud83d"}', None),
    "messages": ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', None),
    "a concept": ('{"prompt": "b", "forget": ["\\ud83d"]}', None),
    "image": ('{"prompt": "b", "image": "\\ud83d.png"}', None),
    "an unknown key": ('{"prompt": "b", "\\ud83d": 1}', None),
}


@pytest.mark.parametrize("place", HALVES)
def test_half_a_character_fails_alone(tmp_path: Path, place: str) -> None:
    line, name = HALVES[place]
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "\\ud83d\\ude00"}}\n')
    rows, failures = answered(source, tmp_path / "out.parquet")
    assert [(row["row"], row["text"]) for row in rows] == [
        (0, "echo a"),
        (2, "echo \U0001f600"),
    ]
    (failure,) = failures
    assert (failure["row"], failure["id"]) == (1, name)
    assert failure["error"] == "InvalidRequestError"
    assert "half of one" in failure["message"]


def test_an_interrupted_run_goes_on_past_such_rows(tmp_path: Path) -> None:
    """Its parts hold the failure; before, the run ended again at the same row."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text(HALVES["id"][0] + "\n" + '{"prompt": "a"}\n' * 40)
    job = replace(stand_in.JOB, engine_args={"max_num_seqs": 1})
    with pytest.raises(Exception, match="the engine died"):
        run.run(job, stand_in.request(source, out), start=stand_in.start_mortal)
    rows, failures = answered(source, out, engine_args={"max_num_seqs": 1})
    assert [row["row"] for row in rows] == list(range(1, 41))
    assert [failure["row"] for failure in failures] == [0]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_and_windows_line_ends_spoil_nothing(tmp_path: Path, end: str) -> None:
    source = tmp_path / "in.jsonl"
    lines = ['{"prompt": "a"}', '{"prompt": "b\u2028c\x85d"}', ""]
    # Twice: files that were joined.
    source.write_bytes(
        (b"\xef\xbb\xbf" + end.join(lines).encode()) * 2 + b"\xef\xbb\xbf"
    )
    rows, failures = answered(source, tmp_path / "out.parquet")
    assert [row["text"] for row in rows] == ["echo a", "echo b\u2028c\x85d"] * 2
    assert not failures


def test_categories_are_the_words_they_stand_for(tmp_path: Path) -> None:
    """Each row group has categories of its own, and chunks go across them."""
    words = ["dog", "cat", None, "dog", "red", "owl", "cat", None, "owl", "sun"]
    tables = [
        pa.table(
            {
                "prompt": pa.array(["?"] * 5).dictionary_encode(),
                "forget": pa.array(part).dictionary_encode(),
                "max_tokens": pa.array(range(first, first + 5)).dictionary_encode(),
            }
        )
        for first, part in ((1, words[:5]), (6, words[5:]))
    ]
    found = rows_of(pa.concat_tables(tables), tmp_path, row_group_size=5)
    assert [row.get("forget") for row in found] == words
    assert [row["max_tokens"] for row in found] == list(range(1, 11))
    named = pa.DictionaryArray.from_arrays([0, 1, 0], ["dog", "cat"])
    lists = pa.ListArray.from_arrays([0, 2, 3, 3], named)
    (first, *others) = rows_of(
        pa.table({"prompt": ["?"] * 3, "forget": lists}), tmp_path
    )
    assert (first["forget"], [row["forget"] for row in others]) == (
        ["dog", "cat"],
        [["dog"], []],
    )


def test_pandas_index_is_no_column(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b"], "__index_level_0__": [7, 9]})
    assert rows_of(table, tmp_path) == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(ConfigError, match="columns nobody reads: index"):
        rows_of(table.rename_columns(["prompt", "index"]), tmp_path)


def test_a_table_with_gaps_holds_floats_for_whole_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "id": [1.0, 2.0],
            "max_tokens": [4.0, None],
            "seed": [None, 7.0],
        }
    )
    read = [read_row(0, row, Defaults(), tmp_path) for row in rows_of(table, tmp_path)]
    assert [row.id for row in read] == ["1", "2"]
    assert [row.sampling["max_tokens"] for row in read] == [4, 64]
    assert [row.sampling.get("seed") for row in read] == [None, 7]
    assert type(read[0].sampling["max_tokens"]) is int


@pytest.mark.parametrize("value", [1.5, 2.0**53, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["id", "max_tokens", "seed"])
def test_other_floats_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        read_row(0, {"prompt": "?", name: value}, Defaults(), Path())


def test_text_of_a_table_that_is_no_utf8_fails_alone(tmp_path: Path) -> None:
    raw = pa.StringArray.from_buffers(3, *pa.array([b"a", b"\xff", b"c"]).buffers()[1:])
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": raw}), source)
    rows, failures = answered(source, tmp_path / "out.parquet")
    assert [row["text"] for row in rows] == ["echo a", "echo c"]
    assert [failure["row"] for failure in failures] == [1]
    assert "not UTF-8" in failures[0]["message"]


def shown(content: bytes) -> Any:
    """Return the picture of a row that holds it."""
    prompt = read_row(0, {"prompt": "?", "image": content}, Defaults(), Path()).prompt
    assert prompt is not None
    return prompt["multi_modal_data"]["image"]


@pytest.mark.parametrize("kind", readable())
def test_a_rows_picture_is_what_the_server_sees(kind: str) -> None:
    content = readable()[kind]
    wanted = ImageMediaIO().load_bytes(content).media
    assert np.array_equal(np.asarray(shown(content)), np.asarray(wanted))


@pytest.mark.parametrize("kind", refused())
def test_a_rows_bad_picture_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="the image cannot be read"):
        shown(refused()[kind])
