# SPDX-License-Identifier: Apache-2.0
"""Candidates together are the edits that settings stand for, whole or pruned."""

import itertools
from dataclasses import replace

import pytest

from tests.learning.calibration.selected_latents import selected
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.grid import GATES
from vllm_sauce.learning.calibration.setting import Action, SiteSetting


def choices_of(latents, k=(1,), gates=(0.0,), actions=("scale 0",), rankings=()):
    config = CalibrationConfig(k=k, gates=gates, actions=actions, rankings=rankings)
    return EditChoices.of("dog", latents, config)


@pytest.fixture
def choices():
    return choices_of(
        {"vision": selected([5, 3, 8]), "decoder.1": selected([1, 2], crisp=False)},
        k=(1, 2, 99),
        gates=(0.0, 0.99),
        actions=("scale 0", "scale -4", "clamp 0.5"),
    )


@pytest.fixture
def wide():
    return choices_of(
        {"vision": selected(range(40))},
        k=(2, 12, 32),
        gates=(0.0,),
        actions=("scale -1",),
    )


def settings_of(choices):
    """Yield everything that may be done."""
    for sites in itertools.product(*map(all_of, choices.grids)):
        yield tuple(one for one in sites if one is not None)


def all_of(grid):
    yield None
    for ranking, k, gate, action in itertools.product(
        grid.rankings, grid.k, grid.gates, grid.actions
    ):
        yield SiteSetting(
            site=grid.site, ranking=ranking, k=k, gate=gate, action=action
        )


def only(site="vision", action="scale 0", **values):
    start = SiteSetting(
        site=site, ranking="file", k=2, gate=0.0, action=Action.parse(action)
    )
    return (replace(start, **values),)


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
    choices = choices_of({"vision": mixed}, k=(4, 32), rankings=("crisp", "share"))
    parts = [len(choices.parts(setting)) for setting in settings_of(choices) if setting]
    assert min(parts) == 1 and max(parts) == choices.most_parts() > 1


def test_every_pruning_is_made_of_candidates(wide):
    candidates = wide.candidates()
    setting, sizes = only(k=32, action="scale -1"), []
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
    assert setting[0].to_json()["without"] == [8, 12, 16, 24]
    assert wide.widest() == 32


def test_settings_mean_what_they_say(choices):
    edit = choices.edits(only(ranking="rate", gate=0.99, action="scale -4"))
    assert set(edit) == {"vision"}
    assert edit["vision"].latents == (8, 3)
    assert edit["vision"].gamma == (-4.0, -4.0)
    assert edit["vision"].gate == pytest.approx((8.99 * 1.01, 3.99 * 1.01))
    edit = choices.edits(only(ranking="rate", action="clamp 0.5"))
    assert edit["vision"].gamma == (0.0, 0.0)
    assert edit["vision"].shift == (-6.0, -3.5)
    assert edit["vision"].gate == (0.0, 0.0)


def test_a_full_gate_lies_above_all_that_was_seen_without_the_concept():
    """Above, not on it: rounding would decide whether that one is edited."""
    choices = choices_of({"vision": selected([5])}, gates=(1.0,))
    assert choices.edits(only(k=1, gate=1.0))["vision"].gate == (2.02,)


def test_gates_that_were_not_measured_are_refused():
    bare = [one.model_copy(update={"quiet": {}}) for one in selected([5]).latents]
    old = selected([5]).model_copy(update={"latents": bare})
    for gate in GATES:
        one = choices_of({"vision": old}, gates=(gate,))
        if gate in (0.0, 1.0):
            assert one.edits(only(k=1, gate=gate))
            continue
        with pytest.raises(ConfigError, match="run sauce select again"):
            one.edits(only(k=1, gate=gate))


def test_a_concept_without_latents_is_named():
    with pytest.raises(ConfigError, match="no latent was selected for 'dog'"):
        choices_of({"vision": selected([])})
