# SPDX-License-Identifier: Apache-2.0
"""What is asked about a picture whatever it shows."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.places import TINY
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.drawn_questions import (
    DrawnQuestions,
    drawn_samples,
    which_are_drawn,
)
from vllm_sauce.data.samples import distinct


@pytest.fixture(scope="module")
def file() -> ConceptFile:
    """Pictures of two objects and one more each, in one domain."""
    return ConceptFile.read(TINY / "concepts.yaml")


def test_no_question_tells_what_is_shown(file: ConceptFile) -> None:
    """Whether a concept is there is asked as often where it is as where it is not."""
    pool = DrawnQuestions(file)
    asked: Counter[tuple[str, bool]] = Counter()
    shown: Counter[tuple[str, bool]] = Counter()
    for example in file.examples:
        questions = " ".join(pool.questions(example, 6)).lower()
        for name in file.concepts:
            key = name, name in example.concepts
            shown[key] += 1
            asked[key] += f" {name} " in questions
    share = {
        there: sum(asked[n, there] for n in file.concepts)
        / sum(shown[n, there] for n in file.concepts)
        for there in (True, False)
    }
    count = sum(shown[n, True] for n in file.concepts)
    error = (share[False] * (1 - share[False]) / count) ** 0.5
    assert share[False] > 0.005
    assert abs(share[True] - share[False]) < 3 * error


def test_they_are_the_same_each_time_and_fewer_come_first(file: ConceptFile) -> None:
    pool = DrawnQuestions(file)
    for example in file.examples[:20]:
        found = pool.questions(example, 7)
        assert found == DrawnQuestions(file).questions(example, 7)
        # Its pictures' prompts are two alike.
        assert len(set(found)) == len(found) >= 5
        assert pool.questions(example, 3) == found[:3]
        assert [s.prompt for s in pool.samples(example, 7)] == list(found)
    assert pool.questions(file.examples[0], 7) != pool.questions(file.examples[1], 7)


def test_texts_are_asked_nothing(file: ConceptFile) -> None:
    text = replace(file.examples[0], picture=None)
    assert DrawnQuestions(file).questions(text, 4) == ()


def test_a_file_with_few_questions_gives_what_it_has(tmp_path: Path) -> None:
    pictures = sorted((TINY / "pictures").rglob("*.png"))[:12]
    for name, some in (("one", pictures[:6]), ("two", pictures[6:])):
        (tmp_path / name).mkdir()
        for picture in some:
            (tmp_path / name / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\nconcepts:\n"
        "  cat: {positive: {folder: one}}\n  dog: {positive: {folder: two}}\n"
    )
    file = ConceptFile.read(tmp_path / "concepts.yaml")
    asked = DrawnQuestions(file).questions(file.examples[0], 9)
    assert set(asked) == {
        "What is in the picture?",
        "Is there a cat in the picture?",
        "Is there a dog in the picture?",
    }


def test_a_harvest_knows_what_was_drawn(file: ConceptFile) -> None:
    """Also what a picture's own prompts ask, too, and is therefore shown once."""
    own, drawn = file.samples("selection"), drawn_samples(file, "selection", 4)
    kept, repeated = distinct(own + drawn)
    assert repeated
    found = which_are_drawn([one.to_json() for one in kept], file, "selection")
    wanted = {(one.prompt, one.to_json()["picture"]) for one in drawn}
    assert found == [(one.prompt, one.to_json()["picture"]) in wanted for one in kept]
    assert sum(found) == len(drawn)
    alone = [one.to_json() for one in own]
    assert not any(which_are_drawn(alone, file, "selection"))
