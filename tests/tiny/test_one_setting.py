# SPDX-License-Identifier: Apache-2.0
"""Edits that are the same for all concepts."""

from tiny.one_setting import at_random, edit_of
from vllm_sauce.concepts import SiteEdit
from vllm_sauce.learning.selection.selection_file import RankedLatent, SelectedConcept


def selected(latents=(), **rows):
    def ranked(latent, **scores):
        pair = (0.0, 0.0)
        return RankedLatent(
            latent=latent,
            scores=scores,
            mean_acts=pair,
            firing_rate=pair,
            max_acts=pair,
        )

    return SelectedConcept(
        domain="objects",
        num_samples=(4, 4),
        latents=[ranked(latent, share=0.5) for latent in latents],
        rows=[ranked(latent, **{f"row:{kind}": 1.0}) for kind, latent in rows.items()],
    )


def test_a_row_leads_to_absence_where_it_can():
    assert edit_of(selected([1], others=8, absence=9)) == SiteEdit.uniform(
        [9], gamma=-0.25, gate=0.6
    )
    assert edit_of(selected([1], others=8)) == SiteEdit.uniform(
        [8], gamma=-0.5, gate=0.6
    )


def test_a_setting_may_be_another():
    edit = edit_of(selected(others=8, absence=9), absence=1.0, gate=0.7)
    assert edit == SiteEdit.uniform([9], gamma=0.0, gate=0.7)
    edit = edit_of(selected(others=8), absence=1.0, others=1.25)
    assert edit == SiteEdit.uniform([8], gamma=-0.25, gate=0.6)


def test_without_a_row_all_latents_are_turned_over():
    edit = edit_of(selected([5, 2]))
    assert edit == SiteEdit.uniform([5, 2], gamma=-2.0)
    drawn = at_random("dog", edit, 1000)
    assert drawn == at_random("dog", edit, 1000) != at_random("cat", edit, 1000)
    assert len(drawn.latents) == 2 and set(drawn.gamma) == {-2.0}
