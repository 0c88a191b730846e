# SPDX-License-Identifier: Apache-2.0
"""What is asked: each method the same questions; sets drawn once and for all."""

import pytest

from tests.evaluation.test_questionnaire import file  # noqa: F401
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind, Part
from vllm_sauce.measuring.cases import ALONE, ELIMINATION, ask_of, cases
from vllm_sauce.measuring.settings import (
    BAN,
    BOTH,
    METHODS,
    OURS,
    PROMPT,
    EvalSettings,
)

NAMES = ("dog", "cat", "pig", "red")
SETTINGS = EvalSettings(
    methods=METHODS, positives=2, negatives=4, together=(2, 3), sets=2
)


def asked(file, settings=SETTINGS):  # noqa: F811
    return cases(file, "scoring", NAMES, settings)


def test_each_method_is_asked_the_same(file):  # noqa: F811
    found = asked(file)
    alone = [case for case in found if case.group == "alone"]
    by = {
        method: [c.question for c in alone if c.method == method] for method in METHODS
    }
    assert by[OURS] == by[PROMPT] == by[BAN] == by[BOTH] != []
    assert {case.forget for case in alone} == {(name,) for name in NAMES}


def test_sets_are_of_their_size_and_the_same_tomorrow(file):  # noqa: F811
    groups, again = (
        {c.group: c.forget for c in asked(file) if c.group not in (ALONE, ELIMINATION)}
        for _ in range(2)
    )
    assert groups == again
    assert sorted(map(len, groups.values())) == [2, 2, 3, 3]
    assert groups["2 at once, set 0"] != groups["2 at once, set 1"]
    about = {c.question.about for c in asked(file) if c.group == "3 at once, set 0"}
    assert about > set(groups["3 at once, set 0"])


def test_more_than_there_are_is_refused(file):  # noqa: F811
    with pytest.raises(ConfigError, match="5 concepts together are more than the 4"):
        asked(file, EvalSettings(together=(5,)))
    # Unless nobody asked for so many.
    groups = {c.group for c in asked(file, EvalSettings(sets=1))}
    assert groups == {ALONE, ELIMINATION}


def test_a_method_changes_how_it_is_asked_and_nothing_else(file):  # noqa: F811
    by = {c.method: c for c in asked(file) if c.forget == ("dog",)}
    ours, prompt, ban, both = (ask_of(by[m], file, 16) for m in METHODS)
    assert (ours.forget, ours.banned) == (("dog",), ())
    assert (prompt.forget, prompt.banned) == ((), ())
    words = by[PROMPT].question.prompt
    assert prompt.question.prompt == f"Do not mention dog. {words}"
    forms = ("dog", "dogs", "doges", "Dog", "Dogs", "Doges")
    assert (ban.forget, ban.banned) == ((), forms)
    assert (both.forget, both.banned) == (("dog",), forms)
    assert ban.question == by[BAN].question


def first_letters(words):
    """Stands for a tokenizer whose tokens are letters."""
    return tuple(
        (ord(form[0]),) for word in words for form in (word, word.capitalize())
    )


def test_the_word_is_read_where_it_would_be_the_answer(file):  # noqa: F811
    """Of the one forgotten concept, where its domain is to be named."""
    kinds = set()
    for case in asked(file):
        question = case.question
        named = question.kind is Kind.NAME and not question.optional
        named &= question.about in ("dog", "cat", "pig") and case.forget == ("dog",)
        read = ask_of(case, file, 16, first_letters).wanted
        if case.forget == ("dog",):
            assert read == (((ord("d"),), (ord("D"),)) if named else ())
            kinds.add((named, "dog" in question.shown))
            assert not ask_of(case.plain(), file, 16, first_letters).wanted
        elif len(case.forget) > 1:
            assert not read
        assert not ask_of(case, file, 16).wanted
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_what_is_asked_twice_is_read_once_and_for_all(file):  # noqa: F811
    """A concept is named for one score and watched for another: one key, one ask."""
    digests: dict[int, str] = {}
    reads: dict[str, set[object]] = {}
    parts: dict[str, set[object]] = {}
    for case in asked(file):
        key = case.key(digests)
        reads.setdefault(key, set()).add(ask_of(case, file, 16, first_letters).wanted)
        parts.setdefault(key, set()).add(case.question.part)
    assert any({Part.IRA, Part.WATCHED} <= some for some in parts.values())
    assert all(len(some) == 1 for some in reads.values())


def test_keys_tell_everything_that_changes_an_answer(file):  # noqa: F811
    digests: dict[int, str] = {}
    found = asked(file)
    keys: dict[str, set[object]] = {}
    for case in found:
        assert case.question.picture is not None
        picture = case.question.picture.name
        told = (case.method, case.forget, case.question.prompt, picture)
        keys.setdefault(case.key(digests), set()).add(told)
    assert all(len(told) == 1 for told in keys.values())
    assert len(keys) == len({one for told in keys.values() for one in told})
    plain = {case.plain().key(digests) for case in found}
    assert not plain & set(keys)


def test_a_set_asks_for_names_and_both_answers(file):  # noqa: F811
    kinds = {c.question.kind for c in asked(file) if c.group == "2 at once, set 0"}
    assert kinds == {Kind.NAME, Kind.YES, Kind.NO}
