# SPDX-License-Identifier: Apache-2.0
"""concepts.yaml: every kind of source, splits, and errors that say where."""

import io
import json
import re

import pytest
from PIL import Image

from tests.places import TINY
from vllm_sauce.data.concepts_yaml import SPLITS, ConceptFile, Questions
from vllm_sauce.data.samples import open_picture
from vllm_sauce.errors import ActivationsError, ConfigError


def png(number):
    """A picture of one pixel, different for each number."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def folder(path, numbers):
    path.mkdir(parents=True)
    for number in numbers:
        (path / f"{number:03d}.png").write_bytes(png(number))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(tmp_path, text):
    path = tmp_path / "concepts.yaml"
    path.write_text(text)
    return ConceptFile.read(path)


def numbers(examples):
    """Which pictures these are, by their pixels."""
    pixels = (open_picture(example.picture).getpixel((0, 0)) for example in examples)
    return {pixel[0] for pixel in pixels if isinstance(pixel, tuple)}


DOG = "version: 1\nminimum: 1\nconcepts:\n  dog:\n    positive: dogs\n"


@pytest.fixture
def two(tmp_path):
    """40 dogs, 40 cats of which 8 are dogs too, in other files."""
    folder(tmp_path / "dogs", range(40))
    folder(tmp_path / "cats/inner", range(32, 72))
    return tmp_path


def test_folders_with_shared_pictures(two):
    file = read(two, DOG + "  cat: {positive: cats, prompts: ['Cat?', 'Which?']}\n")
    dog, cat = file.concepts["dog"], file.concepts["cat"]
    assert numbers(dog.positive) == set(range(40))
    assert numbers(dog.negative) == set(range(40, 72))
    assert numbers(cat.negative) == set(range(32))
    (both,) = {e.concepts for e in dog.positive if e in cat.positive}
    assert both == ("dog", "cat")
    assert dog.domain == "concepts" and dog.answers == ("dog",)


def test_every_sample_has_its_prompts_and_a_key_of_its_own(two):
    file = read(two, DOG + "  cat: {positive: cats, prompts: ['Cat?', 'Which?']}\n")
    samples = file.samples()
    assert len({sample.key for sample in samples}) == len(samples)
    prompts: dict[str, list[str]] = {}
    for sample in samples:
        prompts.setdefault(sample.key.partition("~")[0], []).append(sample.prompt)
    default = "What is in the picture?"
    assert prompts["dogs/000.png"] == [default]
    assert prompts["dogs/035.png"] == [default, "Cat?", "Which?"]
    assert prompts["cats/inner/050.png"] == ["Cat?", "Which?"]
    by_split = [sample for split in SPLITS for sample in file.samples(split)]
    assert sorted(s.key for s in by_split) == sorted(s.key for s in samples)


def test_a_table_labels_many_concepts(tmp_path):
    folder(tmp_path / "p", range(60))
    rows = [
        {"f": f"p/{i:03d}.png", "c": ["red"] * (i % 2) + ["dog"] * (i % 3 == 0) + ["x"]}
        for i in range(60)
    ]
    jsonl(tmp_path / "labels.jsonl", rows)
    file = read(
        tmp_path,
        "version: 1\nminimum: 1\npictures: {jsonl: labels.jsonl, image: f, concepts: c}"
        "\nconcepts:\n  red:\n  dog: {domain: objects, answer: [dog, puppy]}\n",
    )
    red, dog = file.concepts["red"], file.concepts["dog"]
    assert numbers(red.positive) == set(range(1, 60, 2))
    assert numbers(red.negative) == set(range(0, 60, 2))
    assert numbers(dog.positive) == set(range(0, 60, 3))
    assert dog.answers == ("dog", "puppy")
    assert file.domains() == {"concepts": ("red",), "objects": ("dog",)}
    assert file.samples()[3].key == "labels.jsonl#3"
    assert file.samples()[3].concepts == ("red", "dog")


def test_default_negatives_are_of_the_same_kind(tmp_path):
    folder(tmp_path / "dogs", range(4))
    folder(tmp_path / "cats", range(10, 14))
    jsonl(tmp_path / "p.jsonl", [{"t": f"you {i}"} for i in range(9)])
    jsonl(tmp_path / "q.jsonl", [{"t": f"we {i}"} for i in range(9)])
    file = read(
        tmp_path,
        DOG
        + "  cat: {positive: cats}\n  rude: {positive: {jsonl: p.jsonl, prompt: t}}\n"
        + "  kind: {positive: {jsonl: q.jsonl, prompt: t}}\n",
    )
    assert numbers(file.concepts["dog"].negative) == set(range(10, 14))
    assert {e.prompts[0][:2] for e in file.concepts["rude"].negative} == {"we"}


def parquet(path, cells, **more):
    import pyarrow
    from pyarrow import parquet as pq

    pq.write_table(pyarrow.table({"img": cells, **more}), path, row_group_size=5)


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_pictures_in_every_form(tmp_path, kind):
    folder(tmp_path / "files", range(12))
    cells = {
        "bytes": [png(i) for i in range(12)],
        "struct": [{"bytes": png(i), "path": None} for i in range(12)],
        "path": [f"files/{i:03d}.png" for i in range(12)],
    }[kind]
    parquet(tmp_path / "t.parquet", cells, say=[f"Ask {i}" for i in range(12)])
    folder(tmp_path / "other", range(20, 30))
    source = "{parquet: t.parquet, image: img, prompt: say}"
    text = f"version: 1\nminimum: 1\nconcepts:\n  a: {{positive: {source},"
    positive = read(tmp_path, text + " negative: other}\n").concepts["a"].positive
    assert [numbers([e]) for e in positive] == [{i} for i in range(12)]
    assert [e.samples()[0].prompt for e in positive] == [f"Ask {i}" for i in range(12)]
    assert positive[7].key == "t.parquet#7"


@pytest.mark.parametrize("split", [None, "train"])
def test_a_dataset_on_disk(tmp_path, split):
    import datasets

    rows = [{"bytes": png(i), "path": None} for i in range(12)]
    named = [["a"] if i < 6 else [] for i in range(12)]
    table = datasets.Dataset.from_dict(
        {"image": rows, "is": named},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "is": datasets.Sequence(datasets.Value("string")),
            }
        ),
    )
    saved = table if split is None else datasets.DatasetDict({split: table})
    saved.save_to_disk(str(tmp_path / "d"))
    place = "dataset: d" if split is None else f"dataset: d, split: {split}"
    file = read(
        tmp_path,
        f"version: 1\nminimum: 1\npictures: {{{place}, image: image, concepts: is}}\n"
        "concepts: {a: }\n",
    )
    assert numbers(file.concepts["a"].positive) == set(range(6))
    assert numbers(file.concepts["a"].negative) == set(range(6, 12))


def test_words_of_yaml_are_words(tmp_path):
    folder(tmp_path / "dogs", range(4))
    folder(tmp_path / "others", range(9, 13))
    file = read(
        tmp_path,
        "version: 1\nminimum: 1\nquestions:\n  default: {yes: yes, no: no}\n"
        "concepts:\n  no: {positive: dogs, negative: [others]}\n",
    )
    assert list(file.concepts) == ["no"]
    questions = file.questions("concepts")
    assert (questions.yes, questions.no) == ("yes", "no")


def test_a_question_takes_the_word_and_its_article():
    questions = Questions(exists=["Is {concept} {a concept}?", "{a concept}?"])
    assert questions.asks("apple") == "Is apple an apple?"
    assert questions.asks("dog") == "Is dog a dog?"
    assert questions.asks("dog", wording=1) == "a dog?"


def test_only_contents_decide_the_split(two):
    one = read(two, DOG + "  cat: {positive: cats}\n")
    (two / "dogs").rename(two / "moved")
    other = read(two, DOG.replace("dogs", "moved") + "  cat: {positive: cats}\n")
    assert {e.digest: e.split for e in one.examples} == {
        e.digest: e.split for e in other.examples
    }


def test_a_picture_with_two_prompts_is_in_one_split(tmp_path):
    folder(tmp_path / "p", range(30))
    rows = [{"f": f"p/{i // 2:03d}.png", "q": f"Ask {i}"} for i in range(60)]
    jsonl(tmp_path / "t.jsonl", rows)
    folder(tmp_path / "n", range(50, 60))
    text = "version: 1\nminimum: 1\nconcepts:\n  a:\n    positive: {jsonl: t.jsonl, "
    file = read(tmp_path, text + "image: f, prompt: q}\n    negative: n\n")
    splits: dict[str, set[str]] = {}
    for example in file.concepts["a"].positive:
        splits.setdefault(str(numbers([example])), set()).add(example.split)
    assert len(splits) == 30
    assert all(len(found) == 1 for found in splits.values())


def test_shares_can_be_set(two):
    text = "splits: {selection: 1, calibration: 0, scoring: 0}\n"
    file = read(two, DOG + "  cat: {positive: cats}\n" + text)
    assert file.samples("selection") == file.samples()
    with pytest.raises(ConfigError, match="one of selection"):
        file.samples("test")


NO_FOLDER = "no folder .*nowhere"
BAD = {
    "no such folder": (DOG.replace("dogs", "nowhere"), 5, "'dog'.*" + NO_FOLDER),
    "a file for a folder": (DOG.replace("dogs", "a.txt"), 5, "'dog'.*is a file"),
    "no picture": (DOG.replace("dogs", "empty"), 5, "'dog'.*no picture in"),
    "too few": (
        DOG.replace("minimum: 1", "minimum: 30") + "  cat: {positive: cats}\n",
        5,
        "'dog': 40 positive examples give 20 for selection, wanted 30",
    ),
    "unknown key": (DOG + "    postive: x\n", 6, "concepts.dog: unknown key 'postive'"),
    "unknown top key": (DOG + "concept: x\n", 6, "top level: unknown key 'concept'"),
    "a name twice": (DOG + "  dog: {}\n", 6, "'dog' is there twice"),
    "a wrong version": (DOG.replace("1\n", "2\n", 1), 1, "version"),
    "no version": (DOG.replace("version: 1\n", ""), 1, "version"),
    "both signs": (DOG + "    negative: dogs\n", 4, "000.png is both a positive and"),
    "no positives": (DOG + "  cat: {domain: x}\n", 6, "'cat': no positive example"),
    "nothing to be negative": (DOG, 4, "no negative example.*give negative"),
    "two sources in one": (
        DOG + "    negative: {jsonl: a, parquet: b, image: c}\n",
        6,
        "concepts.dog.negative.0: a source is a folder",
    ),
    "no source": (DOG + "    negative: 7\n", 6, "negative.0: a source is a folder"),
    "an empty source": (DOG + "    negative: {jsonl: }\n", 6, "a source is a folder"),
    "a column of a folder": (
        DOG + "    negative: {folder: cats, image: f}\n",
        6,
        "a folder of pictures has no columns",
    ),
    "a column of a text": (
        DOG + "    negative: {text: a.txt, prompt: f}\n",
        6,
        "a file of prompts has no columns",
    ),
    "no text": (DOG + "    negative: {text: no.txt}\n", 6, "cannot read .*no.txt"),
    "a split of a table": (
        DOG + "    negative: {jsonl: a, image: f, split: test}\n",
        6,
        "split is a part of a dataset",
    ),
    "labels of one sign": (
        DOG + "    negative: {jsonl: a, image: f, concepts: c}\n",
        6,
        "concepts is a column of the file's pictures",
    ),
    "a table without labels": (
        DOG + "pictures:\n  - {jsonl: a, image: f}\n",
        7,
        "pictures.0: name the column concepts",
    ),
    "no column": (DOG + "    negative: {jsonl: a}\n", 6, "name a column"),
    "a missing table": (DOG + "    negative: {jsonl: a, image: b}\n", 6, "cannot read"),
    "no json": (DOG + "    negative: {jsonl: bad.jsonl, prompt: b}\n", 6, "no JSON"),
    "no such column": (
        DOG + "    negative: {jsonl: ok.jsonl, prompt: b}\n",
        6,
        "line 1 has no column 'b'; has f",
    ),
    "a picture that is missing": (
        DOG + "    negative: {jsonl: ok.jsonl, image: f}\n",
        6,
        "no picture .*gone.png",
    ),
    "a torn parquet": (
        DOG + "    negative: {parquet: bad.jsonl, image: b}\n",
        6,
        "cannot read .*bad.jsonl",
    ),
    "no dataset": (
        DOG + "    negative: {dataset: empty, image: b}\n",
        6,
        "no dataset written by save_to_disk",
    ),
    "a question without its place": (
        DOG + "questions: {concepts: {exists: 'Is it?'}}\n",
        6,
        "must hold {concept} or",
    ),
    "a question about a text without the text": (
        DOG + "questions: {concepts: {exists_in_text: 'Is it {concept}?'}}\n",
        6,
        "must hold {text}, for the text that is asked about",
    ),
    "questions of no domain": (
        DOG + "  cat: {positive: cats}\nquestions:\n  dgs: {}\n",
        8,
        "no concept has the domain 'dgs'",
    ),
    "one answer": (
        DOG + "questions: {concepts: {no: yes}}\n",
        6,
        "yes and no must differ",
    ),
    "shares beyond one": (DOG + "splits: {scoring: 0.5}\n", 6, "sum to 1, got 1.25"),
    "a name with an outer blank": (
        DOG + "  'cat ': {positive: cats}\n",
        6,
        "without outer blanks",
    ),
    "no mapping": ("- dog\n", None, "must hold version"),
    "no yaml": ("version: [1\n", 2, "expected"),
}


@pytest.mark.parametrize(("text", "line", "message"), BAD.values(), ids=BAD.keys())
def test_mistakes_are_named_with_their_place(two, text, line, message):
    (two / "empty").mkdir()
    (two / "a.txt").write_text("x")
    (two / "bad.jsonl").write_text('{"b": \n')
    jsonl(two / "ok.jsonl", [{"f": "gone.png"}])
    with pytest.raises(ConfigError) as caught:
        read(two, text)
    where = "" if line is None else f", line {line}:"
    assert re.search(f"concepts.yaml{where}.*{message}", str(caught.value)), (
        caught.value
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*concepts.yaml"):
        ConceptFile.read(tmp_path / "concepts.yaml")


def test_rows_that_contradict_each_other(tmp_path):
    folder(tmp_path / "p", [1])
    (tmp_path / "copy.png").write_bytes(png(1))
    rows = [{"f": "p/001.png", "c": ["a"]}, {"f": "copy.png", "c": []}]
    jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(ConfigError, match="#0 and t.jsonl#1 are the same, but"):
        read(
            tmp_path,
            "version: 1\npictures: {jsonl: t.jsonl, image: f, concepts: c}\n"
            "concepts: {a: {}}\n",
        )


def test_a_null_in_a_picture_column(tmp_path):
    parquet(tmp_path / "t.parquet", [png(1), None, png(2)])
    with pytest.raises(ActivationsError, match="line 5.*row 1.*holds no picture"):
        read(tmp_path, DOG.replace("dogs", "{parquet: t.parquet, image: img}"))


def test_the_shipped_pictures_can_be_read():
    """The labels of sauce-tiny's pictures, as the documentation uses them."""

    from tiny.concepts import CONCEPTS, DOMAIN_OF

    file = ConceptFile.read(TINY / "concepts.yaml")
    assert list(file.concepts) == list(CONCEPTS)
    for concept in file.concepts.values():
        assert concept.domain == DOMAIN_OF[concept.name]
        total = len(concept.positive)
        for split, share in (("selection", 0.5), ("calibration", 0.25)):
            assert abs(len(concept.examples(True, split)) - share * total) <= 2
