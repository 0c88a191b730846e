# SPDX-License-Identifier: Apache-2.0
"""The figures of what masks cost in memory."""

from __future__ import annotations

import pytest

from benchmarks import slots
from tests.places import TINY


def test_the_memory_is_that_of_rows_and_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(TINY / "bundle")
    monkeypatch.setattr("sys.argv", ["slots.py", path, "--slots", "16"])
    slots.main()
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    # 60 rows, each an encoder's and a decoder's of 256 bfloat16 and a float32 of bias.
    rows = 60 * (2 * 256 * 2 + 4) / 1024
    # For each row of each slot an index and three factors of 4 bytes; for each slot its
    # length in 4 bytes and two counts in 8.
    tables = 16 * (60 * 4 * 4 + 4 + 2 * 8) / 1024
    figures = ["60", "1.0", "60", f"{rows:.0f}", f"{tables:.0f}"]
    assert cells == [path, "vision", *figures]
