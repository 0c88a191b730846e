# SPDX-License-Identifier: Apache-2.0
"""What a measurement writes into its bundle, and what that takes from a server."""

import json
from dataclasses import replace

import pytest

from tests.cli.sauce import sauce
from tests.measuring.test_measure import MODE, Says
from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.measuring import scores
from vllm_sauce.measuring.measure import RUN_FILE, measure
from vllm_sauce.measuring.record import record
from vllm_sauce.measuring.scores import SCORES, Figure, Results
from vllm_sauce.measuring.settings import OURS, PLAIN, EvalRequest, EvalSettings

FLOOR = {"forget_floor": 0.8, "measured_as": {"dtype": "bfloat16", "eager": False}}


def saved(folder, **provenance):
    """Write a bundle of some of the latents' concepts, found so."""
    shipped = Bundle.load(TINY / "latents")
    concepts = [
        replace(shipped.catalogue.concept(name), provenance=told)
        for name, told in provenance.items()
    ]
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    Bundle.build(shipped.fingerprint, saes, Catalogue(concepts)).save(folder)
    return Bundle.load(folder)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A request to measure three concepts, whose answers are all "none"."""
    monkeypatch.setattr(scores, "REPLICATES", 8)
    saved(tmp_path / "mine", dog={}, red=FLOOR, love={})
    says = Says()
    monkeypatch.setattr(EngineAsker, "open", says.open)
    request = EvalRequest(
        tmp_path / "mine",
        model="m",
        concepts=TINY / "concepts.yaml",
        out=tmp_path / "out",
        settings=EvalSettings(
            positives=2, negatives=2, together=(2, 3), sets=1, set_examples=4
        ),
    )
    return request, says


def test_what_many_keep_at_once_is_written_into_the_bundle(mine):
    """And the answers are still of it: run again, nothing is asked."""
    request, says = mine
    found = measure(request)
    before = Bundle.load(request.bundle)
    assert not before.together
    record(request, found)
    after = Bundle.load(request.bundle)
    assert sorted(after.together) == [2, 3] and after.digest != before.digest
    kept = found.together["3 at once"]["kept name"]
    assert after.together[3]["kept name"] == kept.value
    assert "kept texts" not in after.together[3]  # None was asked.
    asked = len(says.asked)
    assert measure(request) == found and len(says.asked) == asked
    before.save(request.bundle)
    with pytest.raises(ConfigError, match="another bundle now"):
        record(request, found)


def figures(UAg, UAd, n=10):
    values = dict.fromkeys(SCORES, 1.0) | {"UAg": UAg, "UAd": UAd or 0.0}
    asked = dict.fromkeys(SCORES, n) | {"UAd": 0 if UAd is None else n}
    return {name: Figure(values[name], 0, 1, asked[name]) for name in SCORES}


def found_of(alone):
    """Return results with figures of concepts alone and nothing else."""
    plain = dict.fromkeys(alone, figures(0.25, 0.125))
    return Results(
        alone={PLAIN: plain, OURS: alone},
        domains={},
        means={},
        instead={},
        false={},
        worst={},
        away={},
        together={},
    )


def recorded(mine, before, alone, **run):
    request, _ = mine
    request.out.mkdir()
    (request.out / RUN_FILE).write_text(json.dumps({"bundle": before.digest, **run}))
    dropped = record(request, found_of(alone))
    return dropped, Bundle.load(request.bundle).catalogue


def test_scores_are_kept_with_what_they_are_of(mine):
    """In the mode of the engine that was asked, where that is known."""
    request, _ = mine
    before = Bundle.load(request.bundle)
    alone = dict.fromkeys(before.catalogue, figures(0.87654, None))
    dropped, after = recorded(mine, before, alone, measured_as=MODE)
    assert not dropped
    scored = after["red"].scores
    assert (scored["UAg"], scored["UAd"], scored["HM"]) == (0.8765, None, 1)
    assert (scored["base_UAg"], scored["base_UAd"]) == (0.25, 0.125)
    assert "base_HM" not in scored and scored["base_malformed"] == 1
    asked = dict.fromkeys(SCORES, 10) | {"UAd": 0}
    told = {"by": "sauce eval --record", "split": "scoring", "n": asked}
    assert after["red"].provenance == {
        "forget_floor": 0.8,
        "measured_as": MODE,
        "scored": told,
    }
    assert after["dog"].provenance == {"measured_as": MODE, "scored": told}


def test_what_an_older_version_asked_is_of_no_mode_that_is_known(mine):
    request, _ = mine
    before = Bundle.load(request.bundle)
    alone = dict.fromkeys(before.catalogue, figures(0.9, 0.9))
    _, after = recorded(mine, before, alone)
    assert "measured_as" not in after["red"].provenance


@pytest.mark.parametrize(
    ("UAg", "UAd", "kept"),
    [(0.8, 0.8, True), (0.79, 1.0, False), (1.0, 0.79, False), (0.8, None, True)],
)
def test_below_its_floor_a_concept_is_not_offered_any_more(mine, UAg, UAd, kept):
    """One without a floor was never said to reach it."""
    request, _ = mine
    before = Bundle.load(request.bundle)
    alone = dict.fromkeys(before.catalogue, figures(UAg, UAd))
    dropped, after = recorded(mine, before, alone)
    assert dropped == after.weak() == (() if kept else ("red",))
    assert after["dog"].forgotten and after["love"].forgotten


def test_no_figure_makes_a_concept_forgotten(mine):
    request, _ = mine
    before = Bundle.load(request.bundle)
    weak = [replace(one, forgotten=False) for one in before.catalogue.values()]
    saes = {site: sae.weights for site, sae in before.sites.items()}
    Bundle.build(before.fingerprint, saes, Catalogue(weak)).save(request.bundle)
    before = Bundle.load(request.bundle)
    alone = dict.fromkeys(before.catalogue, figures(1.0, 1.0))
    dropped, after = recorded(mine, before, alone)
    assert after.weak() == after.names() and not dropped


def test_the_command_says_what_is_not_offered_and_ends_with_three(mine):
    """ "none" is no denial, so UAd is 0; dog and love have no floor."""
    request, says = mine
    words = (
        *("eval", request.bundle, "--model", "m", "--concepts", request.concepts),
        *("--out", request.out, "--positives", 2, "--negatives", 2, "--together", 2),
        *("--sets", 1, "--set-examples", 4),
    )
    assert sauce(*words).exit_code == 0
    asked = len(says.asked)
    done = sauce(*words, "--record")
    assert done.exit_code == 3 and len(says.asked) == asked
    assert "below the floor they were calibrated with: red; another" in done.stderr
    assert "not forgotten: red; a server refuses them" in done.stderr
    catalogue = Bundle.load(request.bundle).catalogue
    assert catalogue["dog"].scores["UAd"] == 0
    assert catalogue["dog"].provenance["measured_as"] == MODE
    # Once more: it is as it is, and the answers are still of it.
    again = sauce(*words, "--record")
    assert again.exit_code == 3 and "below the floor" not in again.stderr
    assert len(says.asked) == asked
