# SPDX-License-Identifier: Apache-2.0
"""``sauce select`` on sauce-tiny: real pictures, real SAE, a harvest on disk."""

from importlib import import_module
from pathlib import Path

import pytest

from tests.activations.harvests import harvest_pictures
from tests.cli.sauce import sauce
from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts.scores import SCORES
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind
from vllm_sauce.learning.selection.causal import causal_task
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.learning.selection.settings import (
    MODEL_SCORES,
    SCORE_NAMES,
    SelectRequest,
)


@pytest.fixture(scope="module")
def file():
    return ConceptFile.read(TINY / "concepts.yaml")


@pytest.fixture(scope="module")
def harvested(tmp_path_factory, file):
    return harvest_pictures(tmp_path_factory.mktemp("harvest"), file)


def run(harvested, *more):
    options = {
        "--sae": TINY / "latents",
        "--site": "vision",
        "--harvest": harvested,
        "--concepts": TINY / "concepts.yaml",
    }
    given = [part for option in options.items() for part in option]
    return sauce("select", *given, *more)


@pytest.mark.parametrize("score", SCORES)
def test_the_chosen_latents_stand_for_the_concept(harvested, tmp_path, score):
    out = tmp_path / "selection.json"
    done = run(harvested, "--score", score, "--k", 8, "--out", out)
    assert done.exit_code == 0, done.output
    found = SelectionFile.read(out)
    assert (found.score, found.k, found.d_sae) == (score, 8, 2048)
    assert len(found.concepts) == 60
    shipped = Bundle.load(TINY / "latents", weights=False).catalogue
    agree = 0
    for name, concept in found.concepts.items():
        latents = [entry.latent for entry in concept.latents]
        assert 0 < len(latents) <= 8 and len(set(latents)) == len(latents)
        values = [entry.scores[score] or 0.0 for entry in concept.latents]
        assert values == sorted(values, reverse=True)
        assert all(entry.firing_rate[0] > 0 for entry in concept.latents)
        edit = shipped.concept(name).edits.get("vision")
        agree += edit is not None and bool(set(latents) & set(edit.latents))
    # The shipped edits were found by other means, on other pictures.
    assert agree >= 40


def test_latents_are_ranked_by_what_they_do_to_answers(harvested, tmp_path):
    """Attribution's own best, then the best by share; calibration may take either."""
    out = tmp_path / "selection.json"
    score = ("--score", "attribution", "--attribution-examples", 1)
    done = run(harvested, *score, "--model", TINY / "model", "--k", 4, "--out", out)
    assert done.exit_code == 0, done.output
    for concept in SelectionFile.read(out).concepts.values():
        ranks = [entry.scores["attribution"] for entry in concept.latents]
        best = [rank for rank in ranks[:4] if rank is not None]
        assert best == sorted(best, reverse=True) and 4 <= len(ranks) <= 6
        shares = [entry.scores["share"] for entry in concept.latents[4:]]
        assert None not in shares


def test_splits_rank_on_their_own_examples(harvested, tmp_path):
    sizes = {}
    for split in ("selection", "scoring"):
        run(harvested, "--split", split, "--out", tmp_path / "s.json")
        found = SelectionFile.read(tmp_path / "s.json").concepts["red"]
        sizes[split] = found.num_samples
    assert sum(sizes["selection"]) > 1.5 * sum(sizes["scoring"])


def test_mistakes_are_one_line_and_status_2(harvested, tmp_path):
    for more, message in (
        (("--score", "best"), 'Invalid value "best" for --score. Choose from: "share"'),
        (
            ("--role", "picture"),
            'Invalid value "picture" for --role. Choose from: "image", "text"',
        ),
        (("--k", 0), "k must be at least 1"),
        (("--engine-arg", "dtype"), "wanted KEY=VALUE for the engine"),
        (("--split", "test"), "a split is one of"),
        (("--out", tmp_path / "no/such.json"), "cannot write"),
        (("--site", "decoder.1"), "holds vision, not"),
        (("--concepts", tmp_path / "c.yaml"), "cannot read"),
    ):
        done = run(harvested, *more)
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("sauce select: ") and message in done.stderr
        assert "Traceback" not in done.output


def test_a_damaged_selection_is_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"format": "vllm-sauce-selection"}')
    with pytest.raises(ConfigError, match="is no selection.json"):
        SelectionFile.read(tmp_path / "s.json")
    with pytest.raises(ConfigError, match="cannot read"):
        SelectionFile.read(tmp_path / "t.json")


def test_what_causal_scores_ask(file):
    dog = file.concepts["dog"]
    task = causal_task(dog, file.concepts, (1, 2), "selection", 4)
    positive = [q for q in task.questions if q.kind is Kind.NAME]
    negative = [q for q in task.questions if q.kind is Kind.KEEP]
    assert {q.prompt for q in positive} == {"What object is in the picture?"}
    assert len(negative) == 4
    by_picture = {e.picture: e for e in file.examples}
    assert all("dog" in by_picture[q.picture].concepts for q in positive)
    shown = [
        any(
            file.concepts[c].domain == "objects" for c in by_picture[q.picture].concepts
        )
        for q in negative
    ]
    assert shown[:2] == [True, True]
    for question, has_object in zip(negative, shown, strict=True):
        example = by_picture[question.picture]
        assert "dog" not in example.concepts and example.split == "selection"
        # Who has no object is asked about what it has.
        assert has_object == (question.prompt == "What object is in the picture?")


def test_a_request_is_checked():
    with pytest.raises(ConfigError, match="a site is"):
        SelectRequest(sae=Path("a"), site="x", harvest=Path("h"), concepts=Path("c"))


def test_every_score_has_a_name_of_its_own_and_what_ranks_by_it():
    assert len(set(SCORE_NAMES)) == len(SCORE_NAMES)
    for name in MODEL_SCORES:
        assert callable(import_module(f"vllm_sauce.learning.selection.{name}").rank)
