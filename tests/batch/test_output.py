# SPDX-License-Identifier: Apache-2.0
"""Input to chunks to parts to output: complete, in order, once, whatever is killed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.batch.chunks import (
    Chunk,
    input_sha256,
    is_parquet,
    read_chunk,
    split_lines,
    split_parquet,
)
from vllm_sauce.batch.output import Answer, Parts, encode_part
from vllm_sauce.errors import BatchError, ConfigError

RUN = {"input": "a", "forget": ["dog"]}
COLUMNS = {"prompt", "forget", "meta", "messages"}


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write JSON lines without a line's end at the end."""
    path.write_bytes("\n".join(lines).encode())
    return path


def part_of(chunk: Chunk) -> bytes:
    """Answer a chunk backwards; a wrong line is a failure."""
    answers = [
        Answer(row=number, id=None, text=f"to {data['prompt']}")
        if isinstance(data, dict)
        else Answer(row=number, id=None, error="E", message="wrong")
        for number, data in read_chunk(chunk)
    ]
    return encode_part(answers[::-1])


def outcome(parts: Parts) -> tuple[list[int], list[int]]:
    """Return the rows of the output and of the failures, in their order."""
    rows = pq.read_table(parts.out)["row"].to_pylist()
    failures = parts.failures.read_text().splitlines()
    return rows, [json.loads(line)["row"] for line in failures]


LINES = st.lists(st.sampled_from(["good", "bad", "blank"]), max_size=30)


@settings(deadline=None, max_examples=60)
@given(lines=LINES, rows=st.integers(1, 9), data=st.data())
def test_any_order_of_chunks_and_kills_loses_and_doubles_nothing(
    lines: list[str], rows: int, data: st.DataObject
) -> None:
    """Parts come in any order, twice, are torn, and the run dies between any two."""
    texts = {"bad": "{", "blank": "  "}
    written = [texts.get(k) or json.dumps({"prompt": i}) for i, k in enumerate(lines)]
    with tempfile.TemporaryDirectory() as temporary:
        source = write_lines(Path(temporary) / "in.jsonl", written)
        parts = Parts(Path(temporary) / "out.parquet")
        chunks = split_lines(source, rows)
        kills = 0
        while True:
            with parts.opened(RUN, overwrite=False):
                finished = parts.finished(chunks)
                left = [c for c in chunks if c.first not in finished]
                order = data.draw(st.permutations(left))
                kill_at = data.draw(st.integers(0, len(order))) if kills < 3 else None
                for chunk in order[:kill_at]:
                    finished[chunk.first] = parts.add(chunk.first, part_of(chunk))
                if kill_at is not None and finished and data.draw(st.booleans()):
                    torn = data.draw(st.sampled_from(sorted(finished.values())))
                    torn.write_bytes(torn.read_bytes()[:-3])
                if kill_at is None:
                    parts.merge(finished, chunks)
                    break
            kills += 1
        good, bad = outcome(parts)
        assert good == [i for i, kind in enumerate(lines) if kind == "good"]
        assert bad == [i for i, kind in enumerate(lines) if kind == "bad"]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(0, 40),
    group=st.integers(1, 17),
    rows=st.integers(1, 9),
)
def test_parquet_rows_are_those_of_the_file(count: int, group: int, rows: int) -> None:
    """Chunks ignore where row groups end."""
    with tempfile.TemporaryDirectory() as temporary:
        source, spool = Path(temporary) / "in.parquet", Path(temporary) / "spool"
        table = pa.table(
            {
                "prompt": pa.array([str(i) for i in range(count)], pa.string()),
                "forget": pa.array(
                    [["dog"] * (i % 3) or None for i in range(count)],
                    pa.list_(pa.string()),
                ),
            }
        )
        pq.write_table(table, source, row_group_size=group)
        chunks = split_parquet(source, rows, spool, COLUMNS)
        assert [c.rows for c in chunks[:-1]] == [rows] * len(chunks[:-1])
        read = [row for chunk in reversed(chunks) for row in read_chunk(chunk)]
    read.sort(key=lambda row: row[0])
    assert [number for number, _ in read] == list(range(count))
    for i, (_, data) in enumerate(read):
        assert data == {"prompt": str(i)} | (
            {"forget": ["dog"] * (i % 3)} if i % 3 else {}
        )


def test_nulls_of_arrows_structs_are_no_keys(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": None}]
    table = pa.table({"messages": [messages], "meta": [{"a": None, "b": 1}]})
    pq.write_table(table, tmp_path / "in.parquet")
    (chunk,) = split_parquet(tmp_path / "in.parquet", 5, tmp_path / "spool", COLUMNS)
    ((_, data),) = read_chunk(chunk)
    assert data == {
        "messages": [{"role": "user", "content": "hi"}],
        "meta": {"a": None, "b": 1},
    }


def test_a_column_nobody_reads_stops_the_run(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "forgit": ["b"]}), tmp_path / "i.parquet")
    with pytest.raises(ConfigError, match="forgit"):
        split_parquet(tmp_path / "i.parquet", 5, tmp_path / "spool", COLUMNS)


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "i.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="whole parquet"):
        split_parquet(tmp_path / "i.parquet", 5, tmp_path / "spool", COLUMNS)
    with pytest.raises(ConfigError, match="cannot read"):
        input_sha256(tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match=r"\.jsonl or \.parquet"):
        is_parquet(tmp_path / "rows.csv")


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Parts, list[Chunk]]:
    """A run of four rows with one of its two parts finished."""
    lines = [json.dumps({"prompt": i}) for i in range(4)]
    chunks = split_lines(write_lines(tmp_path / "in.jsonl", lines), 2)
    parts = Parts(tmp_path / "out.parquet")
    with parts.opened(RUN, overwrite=False):
        parts.add(0, part_of(chunks[0]))
    return parts, chunks


def test_another_run_is_refused_and_named(begun: tuple[Parts, list[Chunk]]) -> None:
    parts, chunks = begun
    other = RUN | {"forget": ["cat"], "new": 1}
    with (
        pytest.raises(ConfigError, match="differs in forget, new"),
        parts.opened(other, overwrite=False),
    ):
        pass
    with parts.opened(RUN, overwrite=False):
        assert list(parts.finished(chunks)) == [0]
    with parts.opened(other, overwrite=True):
        assert parts.finished(chunks) == {}


def test_the_same_run_goes_on_with_overwrite_too(
    begun: tuple[Parts, list[Chunk]],
) -> None:
    parts, chunks = begun
    with parts.opened(RUN, overwrite=True):
        assert list(parts.finished(chunks)) == [0]


def test_two_runs_at_once_are_refused(begun: tuple[Parts, list[Chunk]]) -> None:
    parts, _ = begun
    with (
        parts.opened(RUN, overwrite=False),
        pytest.raises(ConfigError, match="another run is writing"),
        Parts(parts.out).opened(RUN, overwrite=True),
    ):
        pass


def test_a_finished_output_is_not_replaced_unasked(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out.parquet")
    parts.out.write_text("precious")
    with (
        pytest.raises(ConfigError, match="--overwrite"),
        parts.opened(RUN, overwrite=False),
    ):
        pass
    assert parts.out.read_text() == "precious"
    assert not parts.folder.exists()


def test_a_damaged_run_file_is_another_run(begun: tuple[Parts, list[Chunk]]) -> None:
    parts, chunks = begun
    (parts.folder / "run.json").write_text("{")
    with (
        pytest.raises(ConfigError, match="damaged"),
        parts.opened(RUN, overwrite=False),
    ):
        pass
    with parts.opened(RUN, overwrite=True):
        assert parts.finished(chunks) == {}


def test_nothing_is_merged_unless_all_rows_are_there(
    begun: tuple[Parts, list[Chunk]],
) -> None:
    parts, chunks = begun
    with parts.opened(RUN, overwrite=False):
        finished = parts.finished(chunks)
        with pytest.raises(BatchError, match="no part"):
            parts.merge(finished, chunks)
        doubled = encode_part([Answer(row=2, id=None, text="x")] * 2)
        finished[2] = parts.add(2, doubled)
        with pytest.raises(BatchError, match="must hold the 2 rows"):
            parts.merge(finished, chunks)
    assert not parts.out.exists()
    assert not parts.failures.exists()


def no_space(*args: Any, **kwargs: Any) -> Any:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(
    begun: tuple[Parts, list[Chunk]], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    parts, chunks = begun
    with parts.opened(RUN, overwrite=False):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, no_space)
            patch.setattr(Path, "replace", no_space)
            with pytest.raises(BatchError, match="No space left"):
                parts.add(2, part_of(chunks[1]))
        names = {path.name[:6] for path in parts.folder.iterdir()}
        assert names == {".lock", "run.js", "part-0"}
        assert list(parts.finished(chunks)) == [0]
        finished = parts.finished(chunks)
        finished[2] = parts.add(2, part_of(chunks[1]))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, no_space)
            patch.setattr(Path, "replace", no_space)
            with pytest.raises(BatchError, match="No space left"):
                parts.merge(finished, chunks)
        assert not parts.out.exists()
        parts.merge(finished, chunks)
    assert outcome(parts) == ([0, 1, 2, 3], [])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.parquet.parts").write_text("a file where the folder goes")
    with pytest.raises(BatchError, match="cannot write"):
        Parts(tmp_path / "out.parquet").opened(RUN, overwrite=False).__enter__()
