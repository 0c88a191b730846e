# SPDX-License-Identifier: Apache-2.0
"""A search finds what is best at one site, at two, and where each needs another."""

import pytest

from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.site_search import site_rounds
from vllm_sauce.learning.selection.selection_file import RankedLatent, SelectedConcept

ACTIONS = ("scale 0", "scale -1", "scale -4")


def choices_of(*sites):
    latents = [
        RankedLatent(
            latent=i,
            scores={"share": -float(i)},
            mean_acts=(1.0, 0.1),
            firing_rate=(0.5, 0.1),
            max_acts=(4.0, 2.0),
        )
        for i in range(8)
    ]
    found = SelectedConcept(domain="d", num_samples=(9, 9), latents=latents)
    return EditChoices("dog", dict.fromkeys(sites, found), (1, 4, 8), (0.0,), ACTIONS)


def search(choices, score, passes=2):
    """Return all scores, and the settings of each round."""
    rounds = site_rounds(choices, passes)
    asked = [next(rounds)]
    try:
        while True:
            found = {one: score(choices.at(one)) for one in asked[-1]}
            asked.append(rounds.send(found))
    except StopIteration as stop:
        return stop.value, asked


def strength(sites):
    """How much each site does: k times how far down."""
    return {
        site: one.k * (1 - float(one.action.split()[1])) for site, one in sites.items()
    }


@pytest.mark.parametrize(
    "wanted",
    [
        {"vision": 16.0},
        {"decoder.1": 40.0},
        {"vision": 8.0, "decoder.1": 1.0},
        {"vision": 40.0, "decoder.1": 40.0},
    ],
)
def test_it_finds_what_is_wanted_at_each_site(wanted):
    def score(sites):
        done = strength(sites)
        return -sum(
            abs(done.get(s, 0.0) - wanted.get(s, 0.0)) for s in ("vision", "decoder.1")
        )

    choices = choices_of("vision", "decoder.1")
    scores, asked = search(choices, score)
    best = max(scores, key=scores.__getitem__)
    assert strength(choices.at(best)) == wanted
    assert sorted(scores) == sorted({one for some in asked for one in some})


def test_each_site_is_searched_alone_before_any_pair():
    choices = choices_of("vision", "decoder.1")
    _, asked = search(choices, lambda sites: float(len(sites)))
    on = [sorted({tuple(sorted(choices.at(one))) for one in some}) for some in asked]
    first_pair = next(i for i, some in enumerate(on) if ("decoder.1", "vision") in some)
    assert {site for some in on[:first_pair] for (site,) in some} == {
        "vision",
        "decoder.1",
    }
    assert on[first_pair] == [("decoder.1", "vision")]
    assert 1 < len(asked[first_pair]) <= 9


def test_one_site_has_no_pairs():
    choices = choices_of("vision")
    scores, asked = search(choices, lambda sites: strength(sites)["vision"])
    assert all(set(choices.at(one)) == {"vision"} for one in scores)
    best = max(scores, key=scores.__getitem__)
    assert strength(choices.at(best)) == {"vision": 40.0}
    assert len(asked) <= 9
