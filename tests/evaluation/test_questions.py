# SPDX-License-Identifier: Apache-2.0
"""Which answers are right, read by hand."""

import pytest

from vllm_sauce.evaluation.questions import (
    Kind,
    Question,
    first_word,
    malformed,
    mentions,
)


def test_words_in_answers():
    assert mentions("Two Dogs play.", ["dog"])
    assert mentions("a hot dog", ["hot dog"])
    assert not mentions("a dogma", ["dog"])
    assert not mentions("", ["dog"])
    assert first_word(" No, there is none") == "no"
    assert first_word("...") == ""


def test_each_kind_has_its_own_right_answer():
    named = Question(prompt="?", kind=Kind.NAME, words=("dog", "hound"))
    assert named.right("Two hounds.", "") and not named.right("a cat", "")
    denied = Question(prompt="?", kind=Kind.NO, words=("no",))
    assert denied.right(" No, none.", "yes") and not denied.right("a nose", "no")
    kept = Question(prompt="?")
    assert kept.right(" A tree. ", "a tree.") and not kept.right("a house", "a tree.")


@pytest.mark.parametrize(
    "text",
    [
        "no no no no",  # what decoder edits made of "no"
        "",
        " . ",
        "a dog a dog a dog",
        "The the cat",
        "it is red and it is red and it is red and so on",
    ],
)
def test_a_spoilt_answer_is_known(text):
    assert malformed(text, "no")
    # What the model says anyway is nothing that an edit did.
    assert not malformed(text, text)


@pytest.mark.parametrize(
    "text", ["no", "a dog and a cat and a pig", "No, none.", "1 2 3"]
)
def test_a_whole_answer_is_not_spoilt(text):
    assert not malformed(text, "yes")


def test_an_answer_that_does_not_end_is_spoilt():
    assert malformed("a dog in the", "a dog", goes_on=True)
    assert not malformed("a dog in the", "", goes_on=True)
