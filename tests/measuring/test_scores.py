# SPDX-License-Identifier: Apache-2.0
"""Scores of answers that are written by hand."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_questionnaire import file, written  # noqa: F401
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import LearnError
from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.evaluation.questions import Kind, Part, Question
from vllm_sauce.measuring import report
from vllm_sauce.measuring.answers import Answered, AnswerFile, Kept
from vllm_sauce.measuring.cases import Case, cases
from vllm_sauce.measuring.scores import results, wilson
from vllm_sauce.measuring.settings import EvalSettings
from vllm_sauce.measuring.side_effects import worst_other

NAMES = ("dog", "cat", "pig", "red")
SETTINGS = EvalSettings(positives=2, negatives=4, together=(2,), methods=("ours",))


def truth(case):
    """What a model says that knows everything."""
    question = case.question
    if question.kind is Kind.NAME:
        return question.about
    return "yes" if question.about in question.shown else "no"


def perfect(case):
    """What it says that has forgotten, and knows everything else."""
    if case.question.about not in case.forget:
        return truth(case)
    return "none" if case.question.kind is Kind.NAME else "no"


def scored(file, say):  # noqa: F811
    found = [
        Answered(case, Answer(say(case)), Answer(truth(case)))
        for case in cases(file, "scoring", NAMES, SETTINGS)
    ]
    return results(found, file, NAMES, SETTINGS.methods)


def test_a_text_that_never_named_its_concept_hides_no_loss(written):  # noqa: F811
    """Of other concepts' texts those count that were about them, unedited."""
    file = written("").file  # noqa: F811
    settings = EvalSettings(watched=6, together=(), methods=("ours",))
    found = []
    for case in cases(file, "selection", ["dog"], settings):
        about = case.question.about
        named = (
            about != "cat" or case.question.prompt.partition("number ")[2][0] in "02468"
        )
        said = {True: f"the {about}", False: "a thing"}
        ours = not named if about == "cat" else about != "dog"
        found.append(Answered(case, Answer(said[ours]), Answer(said[named])))
    # Of every other cat the answer was about cats: all of these are lost.
    assert results(found, file, ["dog"], ("ours",)).worst["ours"].value == 1


def test_a_model_that_forgets_and_keeps_has_all(file):  # noqa: F811
    found = scored(file, perfect)
    for figures in found.alone["ours"].values():
        assert [figures[n].value for n in ("UAg", "UAd", "IRA", "CRA", "HM")] == [1] * 5
    assert found.means["ours"]["malformed"].value == 0
    assert found.instead["ours"]["none"].value == 1
    for figures in found.together.values():
        assert not figures["kept texts"].n, "every example has a picture"
        shares = {name: figure.value for name, figure in figures.items() if figure.n}
        assert shares.pop("malformed") == 0
        assert set(shares.values()) == {1}


def test_the_unedited_model_forgets_nothing(file):  # noqa: F811
    found = scored(file, perfect)
    figures = found.means["plain"]
    assert figures["UAg"].value == figures["UAd"].value == 0
    assert figures["IRA"].value == figures["CRA"].value == 1
    assert found.instead["plain"]["itself"].value == 1


def test_garbage_forgets_nothing_either(file):  # noqa: F811
    found = scored(file, lambda case: "no no no no")
    figures = found.means["ours"]
    assert figures["malformed"].value == 1
    assert [figures[n].value for n in ("UAg", "UAd", "IRA", "CRA")] == [0] * 4
    (shares, *_) = found.together.values()
    assert shares["forgotten name"].value == shares["kept name"].value == 0


def test_what_is_said_instead_is_told_by_domain(file):  # noqa: F811
    """Of ours; each answer counts for the domain of what is forgotten."""

    def say(case):
        forgotten = {*case.forget} & {case.question.about}
        if case.question.kind is not Kind.NAME or not forgotten:
            return perfect(case)
        return (
            "none" if file.concepts[case.question.about].domain == "animals" else "it"
        )

    found = scored(file, say)
    assert found.instead["ours, animals"]["none"].value == 1
    assert found.instead["ours, colours"]["else"].value == 1
    parts = [found.instead[f"ours, {d}"]["none"].n for d in ("animals", "colours")]
    assert sum(parts) == found.instead["ours"]["none"].n
    assert {*found.false} == {*found.instead}


def test_what_is_said_instead_is_counted(file):  # noqa: F811
    def say(case):
        if case.question.about in case.forget and case.question.kind is Kind.NAME:
            return {"dog": "cat", "cat": "house", "pig": "pig"}.get(
                case.question.about, "none"
            )
        return perfect(case)

    shares = {k: f.value for k, f in scored(file, say).instead["ours"].items()}
    assert shares == {
        "itself": 0.25,
        "none": 0.25,
        "another": 0.25,
        "else": 0.25,
        "malformed": 0,
    }


def test_the_other_concept_that_is_lost_is_found(file):  # noqa: F811
    def say(case):
        lost = case.forget == ("dog",) and case.question.about == "cat"
        return "none" if lost and case.question.kind is Kind.NAME else perfect(case)

    # One of four concepts takes another along, whole.
    figure = scored(file, say).worst["ours"]
    assert figure.value == 0.25 and figure.low == 0 and figure.n > 0
    assert scored(file, perfect).worst["ours"].value == 0
    assert scored(file, say).worst["plain"].value == 0


def test_bad_luck_is_no_loss(file):  # noqa: F811
    """Of 20 concepts that each lose a tenth, one seems to lose half; none does."""
    question = Question(prompt="?", kind=Kind.NAME, words=("w",), part=Part.WATCHED)
    rng = random.Random(0)

    def found():
        return [
            Answered(
                Case(
                    method="ours",
                    forget=("dog",),
                    group="alone",
                    question=replace(question, about=str(about)),
                ),
                Answer("none" if rng.random() < 0.1 else "w"),
                Answer("w"),
            )
            for about in range(20)
            for _ in range(8)
        ]

    values = [worst_other(found()) or 0.0 for _ in range(150)]
    assert sum(values) / 150 == pytest.approx(0.1, abs=0.03)


def test_who_denies_all_others_gives_it_away(file):  # noqa: F811
    shares = scored(file, perfect).away["ours"]
    assert shares["eliminated"].value == 1
    # Colours are always there; of pictures without a dog, a third show no animal.
    assert 0 < shares["eliminated, without"].value < 0.5
    silent = scored(file, lambda case: "no")
    assert silent.away["ours"]["eliminated, without"].value == 1
    assert (
        silent.away["plain"]["eliminated, without"].value
        == shares["eliminated, without"].value
    )
    hidden = scored(file, lambda case: "yes").away["ours"]
    assert hidden["eliminated"].value == hidden["eliminated, without"].value == 0


def test_what_is_not_said_may_be_likely(file):  # noqa: F811
    """A dog's word has .2 where there is one, .1 elsewhere; others tell nothing."""

    def leak(case):
        if case.question.kind is not Kind.NAME or case.group != "alone":
            return None
        shown = case.forget == ("dog",) and "dog" in case.question.shown
        return math.log(0.2 if shown else 0.1)

    found = [
        Answered(case, Answer(perfect(case)), Answer(truth(case)), leak(case))
        for case in cases(file, "scoring", NAMES, SETTINGS)
    ]
    away = results(found, file, NAMES, SETTINGS.methods).away
    assert away["ours"]["p(word)"].value == pytest.approx((0.2 + 3 * 0.1) / 4)
    assert away["ours"]["told apart"].value == pytest.approx((1 + 3 * 0.5) / 4)
    assert away["ours"]["told apart"].n > 0 == away["plain"]["told apart"].n
    # In a sentence the first token says nothing of what follows.
    wordy = [replace(one, plain=Answer(f"It is {one.plain.text}")) for one in found]
    assert not results(wordy, file, NAMES, SETTINGS.methods).away["ours"]["p(word)"].n


def test_an_interval_grows_with_doubt(file):  # noqa: F811
    def say(case):
        wrong = int(Path(case.question.picture.name).stem) % 2
        return "nothing here" if wrong else perfect(case)

    figures = scored(file, say).alone["ours"]["dog"]
    assert figures["CRA"].low < figures["CRA"].value < figures["CRA"].high
    exact = scored(file, perfect).alone["ours"]["dog"]["CRA"]
    assert exact.low == exact.high == 1


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_wilsons_interval_holds_itswilson(marks):
    figure = wilson(marks)
    assert 0 <= figure.low <= figure.value + 1e-9 and figure.value <= figure.high + 1e-9
    assert figure.high <= 1 and figure.n == len(marks)


def test_wilsons_interval_is_the_published_one():
    """Of 10 in 20: .299 to .701 (Newcombe 1998, table I's method 3)."""
    figure = wilson([True] * 10 + [False] * 10)
    assert (figure.low, figure.high) == pytest.approx((0.2993, 0.7007), abs=1e-4)


def test_answers_that_were_cut_off_are_asked_again(tmp_path, file):  # noqa: F811
    kept = AnswerFile(tmp_path / "answers.jsonl")
    assert kept.read() == {}
    found = cases(file, "scoring", NAMES, SETTINGS)[:3]
    leaks = (None, -0.25, None)
    said = [
        Kept(Answer("yes", finished=number < 2), leaks[number]) for number in range(3)
    ]
    kept.add(zip(("k0", "k1", "k2"), found, said, strict=True))
    whole = kept.read()
    assert [whole[f"k{i}"].answer.finished for i in range(3)] == [True, True, False]
    assert [whole[f"k{i}"].leak for i in range(3)] == [None, -0.25, None]
    kept.path.write_text(kept.path.read_text()[:-5])
    assert set(kept.read()) == {"k0", "k1"}
    kept.add([("k2", found[2], Kept(Answer("no")))])
    assert kept.read()["k2"].answer.text == "no"
    kept.path.write_text("{}\n")
    with pytest.raises(LearnError, match="line 1 is no answer"):
        kept.read()


def test_everything_is_written(tmp_path, file):  # noqa: F811
    report.write(tmp_path, scored(file, perfect), [("bundle", "<b>")])
    page = (tmp_path / "results.html").read_text()
    assert "&lt;b&gt;" in page and "several at once" in page
    text = (tmp_path / "results.md").read_text()
    assert text.count("|---|") == 0 and text.count("| --- |") == 5
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["means"]["ours"]["HM"]["value"] == 1


def test_each_concept_stands_under_its_domain_with_its_mean(file):  # noqa: F811
    found = scored(file, lambda c: truth(c) if "pig" in c.forget else perfect(c))
    *_, each = report.grids(found)
    assert each.title == "each concept: bundle"
    assert each.head == ("concept", "UAg", "UAd", "IRA", "CRA", "HM", "malformed")
    assert [(row[0], row[1].split()[0], row[3].split()[0]) for row in each.rows] == [
        ("dog", "1", "1"),
        ("cat", "1", "1"),
        ("pig", ".00", "1"),
        ("animals, mean of 3", ".67", "1"),
        ("red", "1", "1"),
        ("colours, mean of 1", "1", "1"),
        ("all, mean of 4", ".75", "1"),
    ]
    assert each.rows[-1][1:] == tuple(map(str, found.means["ours"].values()))


def test_what_was_not_asked_has_no_score(file):  # noqa: F811
    """As of a text, which is asked nothing with yes or no."""
    found = [
        Answered(case, Answer(perfect(case)), Answer(truth(case)))
        for case in cases(file, "scoring", NAMES, SETTINGS)
        if case.question.part is not Part.UAD or "dog" not in case.forget
    ]
    scores = results(found, file, NAMES, SETTINGS.methods)
    assert str(scores.alone["ours"]["dog"]["UAd"]) == "-"
    assert scores.alone["ours"]["dog"]["HM"].value == 1
    # A mean is of those that were asked.
    assert scores.means["ours"]["UAd"].value == 1


def test_texts_in_sets_are_kept_to_the_letter_or_lose_a_word(tmp_path):
    """Of six texts each about a dog, a cat or nothing; two concepts are forgotten."""
    for name in ("dog", "cat", "nothing"):
        lines = [f"Tell me of a {name}, {number}." for number in range(18)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    entry = "  {}: {{positive: {{text: {}.txt}}, negative: [{{text: {}.txt}}, {}]}}\n"
    nothing = "{text: nothing.txt}"
    (tmp_path / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\nconcepts:\n"
        + entry.format("dog", "dog", "cat", nothing)
        + entry.format("cat", "cat", "dog", nothing)
    )
    texts = ConceptFile.read(tmp_path / "concepts.yaml")
    settings = EvalSettings(together=(2,), sets=1, set_examples=18, methods=("ours",))

    def said(case, edited):
        prompt = case.question.prompt
        if "nothing" in prompt:
            # One of them is answered otherwise.
            return "well" if edited and prompt == lost else f"yes: {prompt}"
        # Half of the dogs are not mentioned anyway.
        word = "dog" if "dog" in prompt and int(prompt[-3:-1]) % 2 else "cat"
        known = "It barks." if "dog" in prompt and word == "cat" else f"A {word}."
        return "It is." if edited else known

    found = [
        c
        for c in cases(texts, "scoring", ("dog", "cat"), settings)
        if c.group != "alone"
    ]
    lost = next(c.question.prompt for c in found if "nothing" in c.question.prompt)
    answered = [
        Answered(c, Answer(said(c, True)), Answer(said(c, False))) for c in found
    ]
    alone = [
        Answered(c, Answer("It is."), Answer("A dog or cat."))
        for c in cases(texts, "scoring", ("dog", "cat"), settings)
        if c.group == "alone"
    ]
    (shares,) = results(
        [*alone, *answered], texts, ("dog", "cat"), ("ours",)
    ).together.values()
    about = [c.question for c in found if c.question.kind is Kind.NAME]
    mentioned = [q for q in about if q.about == "cat" or int(q.prompt[-3:-1]) % 2]
    assert 0 < len(mentioned) < len(about)
    forgotten = shares["forgotten name"]
    assert (forgotten.n, forgotten.value) == (len(mentioned), 1)
    kept = [
        c.question
        for c in found
        if c.question.kind is Kind.KEEP and not c.question.shown
    ]
    assert shares["kept texts"].n == len(kept) > 1
    assert shares["kept texts"].value == pytest.approx(1 - 1 / len(kept))
    assert not shares["kept name"].n and not shares["kept yes"].n
    # Each text is drawn by itself: some lose what is lost oftener than others.
    half = [
        replace(one, answer=one.plain) if number % 2 else one
        for number, one in enumerate(alone)
    ]
    figure = results(half, texts, ("dog", "cat"), ("ours",)).alone["ours"]["dog"]["CRA"]
    assert figure.low < figure.value < figure.high
