# SPDX-License-Identifier: Apache-2.0
"""Which answers are right, read by hand."""

from vllm_sauce.evaluation.questions import Kind, Question, first_word, mentions


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
