# SPDX-License-Identifier: Apache-2.0
"""What every sample begins with: the sink, and a template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.activations.harvests import labelled_store
from vllm_sauce.activations.reader import ActivationReader
from vllm_sauce.activations.row_choice import RowChoice, alike


@pytest.mark.parametrize(
    ("samples", "count"),
    [
        # A template of three, then words.
        ([("tttt", [1, 8, 9, 4]), ("ttttt", [1, 8, 9, 5, 5])], 3),
        ([("tttt", [1, 8, 9, 4]), ("ttttt", [2, 8, 9, 5, 5])], 1),
        # A token in a picture's place is no template's, whatever its number.
        ([("ttit", [1, 8, 9, 4]), ("ttit", [1, 8, 9, 4])], 2),
        ([("itt", [9, 8, 4]), ("itt", [9, 8, 4])], 1),
        # What is written is the model's, though it be the same.
        ([("ttgg", [1, 8, 9, 4]), ("ttgg", [1, 8, 9, 4])], 2),
        # One prompt's end is where the other goes on.
        ([("tt", [1, 8]), ("tttt", [1, 8, 9, 4])], 2),
        # Nothing would be left.
        ([("ttt", [1, 8, 9])], 1),
        ([("ttt", [1, 8, 9]), ("ttt", [1, 8, 9])], 1),
    ],
)
def test_a_template_is_what_all_begin_with(
    samples: Sequence[tuple[str, Sequence[int]]], count: int, tmp_path: Path
) -> None:
    assert alike(labelled_store(tmp_path, samples)) == count


def test_a_picture_has_no_template(tmp_path: Path) -> None:
    pictures = [("ii", [-1, -1]), ("ii", [-1, -1])]
    assert alike(labelled_store(tmp_path, pictures, "vision")) == 0


def test_a_long_template_ends_somewhere(tmp_path: Path) -> None:
    tokens = list(range(1, 1500))
    samples = [("t" * 1500, [*tokens, 7]), ("t" * 1500, [*tokens, 8])]
    assert alike(labelled_store(tmp_path, samples)) == 1024


def test_it_is_left_out(tmp_path: Path) -> None:
    store = labelled_store(tmp_path, [("tttg", [1, 8, 4, 4]), ("ttg", [1, 8, 5])])
    reader = ActivationReader(store, 1, choice=RowChoice(skip=alike(store)))
    assert sorted(reader.sample(10).flatten().tolist()) == [2.0, 3.0, 12.0]
