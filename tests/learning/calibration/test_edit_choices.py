# SPDX-License-Identifier: Apache-2.0
"""Candidates together are the edits that settings stand for, whole or pruned."""

import itertools
from dataclasses import replace

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.edit_choices import (
    GATES,
    OFF,
    Action,
    EditChoices,
    SiteSetting,
)
from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    RankedLatent,
    SelectedConcept,
    level_name,
)


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
            quiet={level_name(share): share + latent for share in QUIET_LEVELS},
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
        gates=(0.0, 0.99),
        actions=("scale 0", "scale -4", "clamp 0.5"),
    )


@pytest.fixture
def wide():
    return EditChoices(
        "dog",
        {"vision": selected(range(40))},
        k=(2, 12, 32),
        gates=(0.0,),
        actions=("scale -1",),
    )


def settings_of(choices):
    for values in itertools.product(*choices.grid.values()):
        yield tuple(zip(choices.grid, values, strict=True))


def only(choices, site="vision", **values):
    start = SiteSetting(ranking="file", k=2, gate=0.0, action="scale 0")
    return choices.setting({site: replace(start, **values)})


def test_the_grid_has_what_each_site_can_do(choices):
    assert choices.grid["vision k"] == (1, 2)
    assert choices.grid["vision ranking"] == ("file", "share", "rate", "crisp")
    # At decoder.1 crisp chooses nothing.
    assert choices.grid["decoder.1 ranking"] == ("file", "share", "rate")
    assert choices.grid["decoder.1 action"][0] == OFF
    for start in choices.starts:
        assert set(start) == set(choices.grid)
        assert all(start[name] in values for name, values in choices.grid.items())
    on = [set(choices.at(tuple(start.items()))) for start in choices.starts]
    assert on == [{"vision"}, {"decoder.1"}]


def test_a_lone_site_is_never_off(wide):
    assert OFF not in wide.grid["vision action"] and len(wide.starts) == 1


def joined(candidates, names):
    """Return what some candidates do together, as the server's union does it."""
    rows = {}
    for name in names:
        for site, edit in candidates[name].items():
            columns = (edit.latents, edit.gamma, edit.shift, edit.gate)
            for latent, *row in zip(*columns, strict=True):
                assert (site, latent) not in rows
                rows[site, latent] = tuple(row)
    return rows


def rows_of(edits):
    return {
        (site, latent): tuple(row)
        for site, e in edits.items()
        for latent, *row in zip(e.latents, e.gamma, e.shift, e.gate, strict=True)
    }


def test_the_candidates_of_a_setting_are_its_edit(choices):
    """What is asked in the search is what is written into the bundle."""
    candidates, used = choices.candidates(), set()
    for setting in settings_of(choices):
        parts = choices.parts(setting)
        used.update(parts)
        assert len(parts) <= choices.most_parts()
        assert joined(candidates, parts) == rows_of(choices.edits(setting))
    assert used == set(candidates)


def test_the_ranking_of_most_latents_says_how_many_candidates_there_are():
    """A mask with one candidate too many would be refused by the engine."""
    few = selected(range(40), crisp=False)
    one = few.latents[0].model_copy(update={"scores": {"crisp": 1.0, "share": 1.0}})
    mixed = few.model_copy(update={"latents": [one, *few.latents[1:]]})
    choices = EditChoices(
        "dog", {"vision": mixed}, (4, 32), (0.0,), ("scale 0",), ("crisp", "share")
    )
    parts = [len(choices.parts(setting)) for setting in settings_of(choices)]
    assert min(parts) == 1 and max(parts) == choices.most_parts() > 1


def test_every_pruning_is_made_of_candidates(wide):
    candidates = wide.candidates()
    setting, sizes = only(wide, k=32, action="scale -1"), []
    for site, bands in wide.smaller(setting):
        smaller = wide.pruned(setting, site, bands)
        if smaller is None:
            continue
        assert joined(candidates, wide.parts(smaller)) == rows_of(wide.edits(smaller))
        assert (
            rows_of(wide.edits(smaller)).items() < rows_of(wide.edits(setting)).items()
        )
        setting = smaller
        sizes.append(len(wide.edits(setting)["vision"].latents))
    # About a quarter at a time, the worst ranked first; the last one stays.
    assert sizes == [24, 16, 8]
    assert wide.edits(setting)["vision"].latents == tuple(range(8))
    assert wide.at(setting)["vision"].to_json()["without"] == [8, 12, 16, 24]
    assert wide.widest() == 32


def test_settings_mean_what_they_say(choices):
    edit = choices.edits(only(choices, ranking="rate", gate=0.99, action="scale -4"))
    assert set(edit) == {"vision"}
    assert edit["vision"].latents == (8, 3)
    assert edit["vision"].gamma == (-4.0, -4.0)
    assert edit["vision"].gate == pytest.approx((8.99 * 1.01, 3.99 * 1.01))
    edit = choices.edits(only(choices, ranking="rate", action="clamp 0.5"))
    assert edit["vision"].gamma == (0.0, 0.0)
    assert edit["vision"].shift == (-6.0, -3.5)
    assert edit["vision"].gate == (0.0, 0.0)


def test_a_full_gate_lies_above_all_that_was_seen_without_the_concept():
    """Above, not on it: rounding would decide whether that one is edited."""
    choices = EditChoices("dog", {"vision": selected([5])}, (1,), (1.0,), ("scale 0",))
    assert choices.edits(only(choices, k=1, gate=1.0))["vision"].gate == (2.02,)


def test_a_setting_survives_its_own_words(choices):
    for setting in settings_of(choices):
        here = choices.at(setting)
        assert choices.edits(choices.setting(here)) == choices.edits(setting)


def test_rankings_can_be_narrowed(choices):
    few = replace(choices, rankings=("crisp", "file"))
    assert few.grid["vision ranking"] == ("crisp", "file")
    assert few.grid["decoder.1 ranking"] == ("file",)
    with pytest.raises(ConfigError, match="decoder.1.*file, share, rate, not by crisp"):
        replace(choices, rankings=("crisp",))


@pytest.mark.parametrize("text", ["scale", "scale 1", "scale -101", "clamp 0", "cut 1"])
def test_actions_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="an action is"):
        Action.parse(text)


def test_gates_that_were_not_measured_are_refused(choices):
    with pytest.raises(ConfigError, match=r"a gate is one of 0.0, 0.9, .*got 0.5"):
        replace(choices, gates=(0.0, 0.5))
    bare = [one.model_copy(update={"quiet": {}}) for one in selected([5]).latents]
    old = selected([5]).model_copy(update={"latents": bare})
    for gate in GATES:
        one = EditChoices("dog", {"vision": old}, (1,), (gate,), ("scale 0",))
        if gate in (0.0, 1.0):
            assert one.edits(only(one, k=1, gate=gate))
            continue
        with pytest.raises(ConfigError, match="run sauce select again"):
            one.edits(only(one, k=1, gate=gate))


def test_a_concept_without_latents_is_named():
    with pytest.raises(ConfigError, match="no latent was selected for 'dog'"):
        EditChoices("dog", {"vision": selected([])}, (1,), (0.0,), ("scale 0",))
