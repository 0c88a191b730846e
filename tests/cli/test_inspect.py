# SPDX-License-Identifier: Apache-2.0
"""``sauce inspect`` from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.sauce import sauce
from tiny.exam import LATENTS_FOLDER, MODEL_FOLDER
from tiny.pictures import PICTURE_FOLDER

CONCEPTS = PICTURE_FOLDER.parent / "concepts.yaml"


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with the first dozen shipped pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = (PICTURE_FOLDER / "labels.jsonl").read_text().splitlines()[:12]
    (folder / "labels.jsonl").write_text("\n".join(lines))
    for i in range(12):
        shutil.copy(PICTURE_FOLDER / f"{i:03d}.png", folder)
    return folder


def run(*words: object) -> tuple[int, str]:
    """Run ``sauce inspect`` on sauce-tiny; returns its status and what it said."""
    done = sauce("inspect", LATENTS_FOLDER, "--model", MODEL_FOLDER, *words)
    return done.exit_code, done.output


def test_a_folder_becomes_a_page(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog.html"
    options = ("--latents", 2, "--top", 3, "--probes", 1)
    asked = (
        "--question",
        "Do you see {a concept}?",
        "--naming",
        "objects=Which object?",
    )
    status, said = run(
        "--pictures", few, "--concept", "dog", "--out", out, *options, *asked
    )
    assert status == 0 and "dog.html" in said, said
    page = out.read_text()
    assert "Concept “dog”" in page and page.count('class="latent"') == 2
    assert "Do you see {a concept}?" in page and "Which object?" in page
    assert page.count("<figure>") <= 6


def test_a_concepts_file_becomes_a_page(few: Path, tmp_path: Path) -> None:
    """Its examples, of one split, its questions and its words are used."""
    (tmp_path / "concepts.yaml").write_text(
        """version: 1
concepts: {cat: {domain: objects, answer: [cat]}, green: {domain: colours}}
pictures: {jsonl: pictures/labels.jsonl, image: file, concepts: concepts}
questions: {objects: {exists: "Can you see {a concept}?"}}
splits: {selection: 0, calibration: 0, scoring: 1}
minimum: 1
"""
    )
    out = tmp_path / "report.html"
    options = ("--latents", 1, "--top", 2, "--probes", 1, "--out", out)
    names = ("--concept", "cat", "--concept", "green")
    asked = ("--concepts", tmp_path / "concepts.yaml", *names, *options)
    status, said = run(*asked, "--split", "selection")
    assert status == 2 and "not a single" in said
    status, said = run(*asked, "--split", "scoring")
    assert status == 0, said
    page = out.read_text()
    assert page.count('<section class="concept"') == 2
    assert "Can you see {a concept}?" in page
    assert "<dd>12 samples" in page


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), "either --concepts or --pictures"),
        (("--pictures", "a", "--concepts", "b"), "either --concepts or --pictures"),
        (("--pictures", "nowhere"), "cannot be read"),
        (("--pictures", PICTURE_FOLDER, "--split", "scoring"), "needs --concepts"),
        (("--concepts", CONCEPTS, "--question", "{concept}?"), "under questions"),
        (("--concepts", CONCEPTS, "--split", "some"), "a split is one of"),
        (("--pictures", PICTURE_FOLDER, "--concept", "dogg"), "did you mean 'dog'"),
        (("--pictures", PICTURE_FOLDER, "--top", "0"), "top must be at least 1"),
        (("--pictures", PICTURE_FOLDER, "--out", "no/such/a.html"), "is no folder"),
        (("--pictures", PICTURE_FOLDER, "--question", "Is it?"), "{concept}"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(words, wanted: str) -> None:
    status, said = run(*words)
    assert status == 2
    assert wanted in " ".join(said.split()), said


def test_another_models_bundle_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MODEL_FOLDER, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    model = ("--model", tmp_path / "model")
    done = sauce("inspect", LATENTS_FOLDER, *model, "--pictures", PICTURE_FOLDER)
    assert done.exit_code == 2 and "another model" in done.output
