# SPDX-License-Identifier: Apache-2.0
"""What is asked about a concept, and what the answers make."""

import json
import re
from collections import Counter

import pytest
from PIL import Image

from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.evaluation.metrics import outcome
from vllm_sauce.evaluation.questionnaire import Questionnaire, share_of
from vllm_sauce.evaluation.questions import Kind, Part

ANIMALS, COLOURS = ("dog", "cat", "pig"), ("red", "blue")


def write(folder, yaml, rows):
    for number, _ in enumerate(rows):
        Image.new("RGB", (8, 8), (number, 7, 7)).save(folder / f"{number}.png")
    lines = [
        json.dumps({"file": f"{number}.png", "concepts": row})
        for number, row in enumerate(rows)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "concepts.yaml").write_text(yaml)
    return ConceptFile.read(folder / "concepts.yaml")


def shown(asked):
    """Return which picture an item or an example has."""
    assert asked.picture is not None
    return asked.picture.name


@pytest.fixture
def file(tmp_path):
    """Every animal in every colour, four times; some pictures with a colour alone."""
    rows = [[a, c] for a in ANIMALS for c in COLOURS for _ in range(6)]
    rows += [[c] for c in COLOURS for _ in range(6)]
    names = "\n".join(
        f"  {n}: {{domain: {d}}}"
        for d, some in (("animals", ANIMALS), ("colours", COLOURS))
        for n in some
    )
    return write(
        tmp_path,
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        "questions:\n"
        '  animals: {name: "Which animal?", exists: "Is there {a concept}?"}\n'
        '  colours: {name: "Which colour?", exists: "Is it {concept}?"}\n'
        f"concepts:\n{names}\n",
        rows,
    )


def test_every_question_is_about_what_its_part_says(file):
    items = Questionnaire(file, "selection").questions("dog", 4, 8)
    shows = {shown(e): set(e.concepts) for e in file.examples}
    assert {item.part for item in items} == set(Part) - {Part.WATCHED}
    for item in items:
        there = shows[shown(item)]
        assert ("dog" in there) == (item.part in (Part.UAG, Part.UAD, Part.CRA_SHOWN))
        if item.part is Part.UAD:
            assert (item.prompt, item.words) == ("Is there a dog?", ("no",))
        elif item.kind is Kind.NAME and item.part is not Part.UAG:
            assert item.words[0] in there - {"dog"}
            domain = ANIMALS if item.part is Part.IRA else COLOURS
            assert item.words[0] in domain
        elif item.kind in (Kind.YES, Kind.NO):
            asked = next(n for n in (*ANIMALS, *COLOURS) if n in item.prompt)
            assert (asked in there) == (item.kind is Kind.YES)
            assert asked != "dog"


def test_every_other_concept_is_watched_where_the_target_is_not(file):
    items = Questionnaire(file, "selection").questions("dog", 4, 8, watched=2)
    watched = [item for item in items if item.part is Part.WATCHED]
    shows = {shown(e): set(e.concepts) for e in file.examples}
    by_name: dict[str, list[str]] = {}
    for item in watched:
        assert item.kind is Kind.NAME and item.words == (item.about,)
        assert item.about in shows[shown(item)] and "dog" not in shows[shown(item)]
        by_name.setdefault(item.about, []).append(shown(item))
    assert set(by_name) == {*ANIMALS, *COLOURS} - {"dog"}
    assert all(len(set(pictures)) == 2 for pictures in by_name.values())
    # Half of the questions watch each of them once, those of the search none.
    alone = [items[n] for n in share_of(items, 0.5, watched=False)]
    half = [items[n] for n in share_of(items, 0.5)]
    assert alone == [item for item in half if item.part is not Part.WATCHED]
    once = [item.about for item in half if item.part is Part.WATCHED]
    assert sorted(once) == sorted({*ANIMALS, *COLOURS} - {"dog"})
    assert not any(
        item.part is Part.WATCHED
        for item in Questionnaire(file, "selection").questions("dog", 4, 8)
    )


def test_the_mean_hides_what_the_worst_shows(file):
    items = Questionnaire(file, "selection").questions("dog", 4, 8, watched=2)
    everything = [1.0] * len(items)
    base = outcome(items, everything)
    assert base.worst(base) == ("", 0.0)
    lost = [0.0 if i.part is Part.WATCHED and i.about == "cat" else 1.0 for i in items]
    scores = outcome(items, lost)
    assert scores.loss(base) == 0.0
    assert scores.worst(base) == ("cat", 1.0)


def test_each_wording_is_asked(tmp_path):
    file = write(
        tmp_path,
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        "questions:\n  default:\n    name: ['What?', 'Which?']\n"
        "    exists: ['Any {concept}?', 'Some {concept}?']\n"
        "concepts:\n  dog: {domain: a}\n  cat: {domain: a}\n  red: {domain: b}\n",
        [["dog", "red"]] * 12 + [["cat"]] * 12,
    )
    items = Questionnaire(file, "selection").questions("dog", 6, 6)
    for part, kind, wanted in (
        (Part.UAG, Kind.NAME, {"What?", "Which?"}),
        (Part.UAD, Kind.NO, {"Any dog?", "Some dog?"}),
    ):
        asked = {i.prompt for i in items if i.part is part and i.kind is kind}
        assert wanted <= asked


def test_every_denial_is_asked_in_two_wordings(tmp_path):
    wordings = ["Any {concept}?", "Some {concept}?", "A {concept}?"]
    file = write(
        tmp_path,
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        f"questions: {{default: {{exists: {json.dumps(wordings)}}}}}\n"
        "concepts:\n  dog: {domain: a}\n  cat: {domain: a}\n",
        [["dog"]] * 20 + [["cat"]] * 12,
    )
    items = Questionnaire(file, "selection").questions("dog", 6, 6)
    asked: dict[str, list[str]] = {}
    for item in items:
        if item.part is Part.UAD:
            asked.setdefault(shown(item), []).append(item.prompt)
    assert len(asked) == 6
    assert {len(set(prompts)) for prompts in asked.values()} == {2}
    assert len({p for prompts in asked.values() for p in prompts}) == 3


def test_as_many_examples_with_it_as_without_tell_what_is_kept(file):
    items = Questionnaire(file, "selection").questions("dog", 5, 2)
    pictures = {
        part: {shown(item) for item in items if item.part is part} for part in Part
    }
    assert len(pictures[Part.UAG]) == len(pictures[Part.UAD]) == 5
    assert len(pictures[Part.CRA_SHOWN]) == 2
    assert pictures[Part.CRA_SHOWN] <= pictures[Part.UAG]
    assert len(pictures[Part.IRA] | pictures[Part.CRA_OTHER]) == 2


def test_an_example_is_asked_one_of_its_own_prompts(tmp_path):
    file = write(
        tmp_path,
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        "defaults: {prompts: ['One?', 'Two?', 'Three?']}\n"
        "concepts:\n  dog: {domain: a}\n  cat: {domain: a}\n  red: {domain: b}\n",
        [["dog", "red"]] * 20 + [["cat"]] * 12,
    )
    items = Questionnaire(file, "selection").questions("dog", 9, 4)
    own = [item for item in items if item.optional]
    assert len(own) == len({shown(item) for item in own}) >= 5
    assert {item.prompt for item in own} <= {"One?", "Two?", "Three?"}
    assert len({item.prompt for item in own}) > 1
    assert all(item.part is Part.UAG for item in own)


def test_the_split_and_the_numbers_are_kept_to(file):
    questionnaire = Questionnaire(file, "scoring")
    items = questionnaire.questions("dog", 2, 3)
    mine = {shown(e) for e in file.examples if e.split == "scoring"}
    assert {shown(item) for item in items} <= mine
    assert len({shown(item) for item in items if item.part is Part.UAD}) == 2
    assert items == Questionnaire(file, "scoring").questions("dog", 2, 3)


def test_who_knows_everything_forgets_nothing(file):
    items = Questionnaire(file, "selection").questions("dog", 4, 8)
    right = [0.0 if item.part is Part.UAD else 1.0 for item in items]
    scores = outcome(items, right)
    assert (scores.UAg, scores.UAd, scores.IRA, scores.CRA) == (0.0, 0.0, 1.0, 1.0)
    nothing = outcome(items, [1 - r for r in right])
    assert (nothing.UAg, nothing.UAd, nothing.IRA, nothing.CRA) == (1.0, 1.0, 0.0, 0.0)
    assert scores.HM == nothing.HM == 0.0
    assert nothing.loss(scores) == 1.0


def test_yes_and_no_weigh_the_same(file):
    """Always "yes" is half of the yes/no accuracy, however many of each there are."""
    items = Questionnaire(file, "selection").questions("dog", 4, 8)
    says_yes = [float(item.kind is Kind.YES) for item in items]
    scores = outcome(items, says_yes)
    assert round(scores.IRA or 0.0, 9) == 0.25


def test_without_other_labels_answers_are_kept(tmp_path):
    file = write(
        tmp_path,
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        "concepts:\n  dog: {domain: animals}\n",
        [["dog"]] * 6 + [[]] * 6,
    )
    items = Questionnaire(file, "selection").questions("dog", 3, 3)
    kept = [item for item in items if item.kind is Kind.KEEP]
    assert {item.part for item in kept} == {Part.CRA_OTHER}
    assert kept[0].right(" A tree. ", "a tree.")
    assert not kept[0].right("a house", "a tree.")
    assert outcome(items, [1.0] * len(items)).IRA is None


def test_a_part_has_some_of_everything(file):
    items = Questionnaire(file, "selection").questions("dog", 4, 8)
    before: set[int] = set()
    for share in (0.01, 0.3, 0.6, 1.0):
        chosen = share_of(items, share)
        assert {(i.part, i.kind) for i in items} == {
            (items[n].part, items[n].kind) for n in chosen
        }
        assert before <= set(chosen)
        before = set(chosen)
    assert chosen == list(range(len(items)))


def test_elimination_asks_for_all_others_of_the_domain(file):
    """On pictures with the concept and without it; never for itself."""
    items = Questionnaire(file, "scoring").elimination("dog", 2)
    shows = {shown(e): set(e.concepts) for e in file.examples}
    asked: dict[str, list[str]] = {}
    for item in items:
        assert item.kind is Kind.NO and item.part is None and item.words == ("no",)
        asked.setdefault(shown(item), []).append(item.about)
    assert all(sorted(abouts) == ["cat", "pig"] for abouts in asked.values())
    with_it = ["dog" in shows[picture] for picture in asked]
    assert sorted(with_it) == [False, False, True, True]
    assert not Questionnaire(file, "scoring").elimination("dog", 0)


@pytest.fixture
def written(tmp_path):
    """Texts about animals and a fruit; a yes/no question of them, where wanted."""

    def with_questions(asked):
        for name in (*ANIMALS, "fig"):
            lines = [f"the {name} number {i} {{concept}}" for i in range(12)]
            (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        names = "".join(
            f"  {n}: {{domain: {d}, positive: {{text: {n}.txt}}}}\n"
            for n, d in (*((a, "animals") for a in ANIMALS), ("fig", "fruit"))
        )
        path = tmp_path / "concepts.yaml"
        path.write_text(f"version: 1\nminimum: 1\n{asked}concepts:\n{names}")
        return Questionnaire(ConceptFile.read(path), "selection")

    return with_questions


def test_other_concepts_of_texts_are_watched_where_the_target_is_not(written):
    """By their own words: what is asked of a text is the text."""
    items = written("").questions("dog", 4, 8, watched=2)
    watched = [item for item in items if item.part is Part.WATCHED]
    names = ["cat", "cat", "fig", "fig", "pig", "pig"]
    assert sorted(item.about for item in watched) == names
    assert len({item.prompt for item in watched}) == len(watched)
    for item in watched:
        assert item.prompt.startswith(f"the {item.about} number")
        assert (item.kind, item.words, item.optional) == (
            Kind.NAME,
            (item.about,),
            True,
        )


def test_texts_are_asked_yes_and_no_where_the_file_says_how(written):
    asked = "questions: {animals: {exists_in_text: ['{concept} in: {text}']}}\n"
    items = written(asked).questions("dog", 4, 8, watched=1)

    def of(part, kind):
        return [i for i in items if (i.part, i.kind) == (part, kind)]

    denied = of(Part.UAD, Kind.NO)
    assert len(denied) == 4
    for item in denied:
        # A text may hold what stands for the word.
        assert re.fullmatch(r"dog in: the dog number \d+ \{concept\}", item.prompt)
    assert len(of(Part.IRA, Kind.YES)) == 4
    for item in of(Part.IRA, Kind.YES):
        assert item.prompt.startswith(f"{item.about} in: the {item.about} number")
    for item in of(Part.IRA, Kind.NO):
        assert item.about not in item.shown and item.about != "dog"
    # What the texts themselves are answered is asked, too.
    assert of(Part.CRA_OTHER, Kind.KEEP) and of(Part.UAG, Kind.NAME)
    assert not [i for i in items if i.part in (Part.IRA,) and i.kind is Kind.NAME]


def test_texts_are_asked_no_yes_nor_no_unless_the_file_says_how(written):
    asked = written("")
    items = asked.questions("dog", 4, 8, watched=1)
    items += asked.elimination("dog", 2)
    assert {item.kind for item in items} == {Kind.NAME, Kind.KEEP}


def test_who_denies_all_other_topics_of_a_text_gives_it_away(written):
    asked = "questions: {animals: {exists_in_text: ['{concept} in: {text}']}}\n"
    items = written(asked).elimination("dog", 2)
    assert Counter(item.about for item in items) == {"cat": 4, "pig": 4}
    assert len({item.prompt for item in items}) == 8
