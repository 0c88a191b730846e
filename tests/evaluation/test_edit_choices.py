# SPDX-License-Identifier: Apache-2.0
"""Candidates are the edits that settings stand for; strength stands for gamma."""

import itertools

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.edit_choices import Action, EditChoices, strength_of
from vllm_sauce.evaluation.selection_file import RankedLatent, SelectedConcept


def selected(latents, crisp=True):
    """Latents ranked by the file; "rate" ranks them the other way round."""
    ranked = [
        RankedLatent(
            latent=latent,
            scores={
                "share": -float(i),
                "rate": float(i),
                "crisp": 1.0 if crisp else None,
            },
            mean_acts=(1.0, 0.1),
            firing_rate=(0.5, 0.1),
            max_acts=(4.0 + latent, 2.0),
        )
        for i, latent in enumerate(latents)
    ]
    return SelectedConcept(domain="d", num_samples=(9, 9), latents=ranked)


@pytest.fixture
def choices():
    return EditChoices(
        "dog",
        {"vision": selected([5, 3, 8]), "decoder.1": selected([1, 2], crisp=False)},
        k=(1, 2, 99),
        gates=(0.0, 0.5),
        actions=("scale 0", "scale -4", "clamp 0.5"),
    )


def settings_of(choices):
    for values in itertools.product(*choices.grid.values()):
        yield dict(zip(choices.grid, values, strict=True))


def test_the_grid_has_what_all_sites_can_do(choices):
    assert choices.grid["sites"] == (
        ("vision",), ("decoder.1",), ("vision", "decoder.1")
    )  # fmt: skip
    assert choices.grid["k"] == (1, 2)
    # At decoder.1 crisp chooses nothing.
    assert choices.grid["ranking"] == ("file", "share", "rate")
    for start in choices.starts:
        assert all(start[name] in values for name, values in choices.grid.items())


def test_a_candidate_at_its_strength_is_the_edit(choices):
    """What is asked in the search is what is written into the bundle."""
    candidates = choices.candidates()
    used = set()
    for setting in settings_of(choices):
        name, strength = choices.candidate(setting)
        used.add(name)
        want, got = choices.edits(setting), candidates[name]
        assert set(got) == set(want) == set(setting["sites"])
        for site, edit in want.items():
            other = got[site]
            assert (edit.latents, edit.gate) == (other.latents, other.gate)
            for mine, theirs in zip(edit.gamma, other.gamma, strict=True):
                assert mine - 1 == pytest.approx(strength * (theirs - 1))
            for mine, theirs in zip(edit.shift, other.shift, strict=True):
                assert mine == pytest.approx(strength * theirs)
    assert used == set(candidates)


def test_settings_mean_what_they_say(choices):
    setting = {"sites": ("vision",), "ranking": "rate", "k": 2, "gate": 0.5}
    edit = choices.edits({**setting, "action": "scale -4"})["vision"]
    assert edit.latents == (8, 3)
    assert edit.gamma == (-4.0, -4.0)
    assert edit.gate == (1.0, 1.0)
    edit = choices.edits({**setting, "action": "clamp 0.5"})["vision"]
    assert edit.gamma == (0.0, 0.0)
    assert edit.shift == (-6.0, -3.5)


def test_strengths():
    assert [strength_of(g) for g in (1, 0, -1, -4)] == [0.0, 0.5, 1.0, 2.5]


@pytest.mark.parametrize("text", ["scale", "scale 1", "scale -20", "clamp 0", "cut 1"])
def test_actions_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="an action is"):
        Action.parse(text)


def test_a_concept_without_latents_is_named():
    with pytest.raises(ConfigError, match="no latent was selected for 'dog'"):
        EditChoices("dog", {"vision": selected([])}, (1,), (0.0,), ("scale 0",))
