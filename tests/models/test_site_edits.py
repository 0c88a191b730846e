# SPDX-License-Identifier: Apache-2.0
"""The batched edit is the served op, at any strength."""

import pytest
import torch

from tests.tiny_world import random_sae
from vllm_sauce.concepts import VISION, SiteEdit
from vllm_sauce.models.site_edits import EditTensors, site_actions
from vllm_sauce.sae import SAEWeights, reconstruct
from vllm_sauce_kernels.masked_edit.reference import masked_edit_ref


def build_sae(threshold: bool = False) -> SAEWeights:
    generator = torch.Generator().manual_seed(0)
    return SAEWeights(
        W_enc=torch.randn(8, 20, generator=generator),
        W_dec=torch.randn(20, 8, generator=generator),
        b_enc=torch.randn(20, generator=generator),
        b_dec=torch.randn(8, generator=generator),
        threshold=torch.full((20,), 0.7) if threshold else None,
        architecture="jumprelu" if threshold else "standard",
    )


EDIT = SiteEdit(
    latents=(3, 11, 4),
    gamma=(-0.5, 0.0, -2.0),
    shift=(0.0, -1.0, 0.5),
    gate=(2.0, 3.0, 4.0),
)


def test_edit_is_the_papers_edit_with_the_error_kept():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    for threshold in (False, True):
        sae = build_sae(threshold)
        edit = EditTensors.build(sae, EDIT)
        assert torch.allclose(edit(x), reconstruct(sae, x, EDIT), atol=1e-5)
        assert 0 < int((edit(x) != x).any(-1).sum()) < 50


def test_edit_is_the_served_op():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    edit = EditTensors.build(build_sae(), EDIT, strength=1.5)
    served, edited = x.clone(), torch.zeros(1, dtype=torch.long)
    masked_edit_ref(
        served,
        None,
        torch.zeros(50, dtype=torch.int32),
        torch.arange(3, dtype=torch.int32)[None],
        edit.scale[None],
        edit.shift[None],
        edit.gate[None],
        torch.tensor([3], dtype=torch.int32),
        edit.W_enc.T.contiguous(),
        edit.W_dec,
        edit.b_enc,
        edited,
    )
    assert torch.allclose(edit(x), served, atol=1e-5)
    assert (served != x).any()


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "normed"])
def test_every_kind_of_sae_is_edited_in_proportion(kind):
    sae = random_sae(kind)
    edit = SiteEdit(
        latents=(3, 11), gamma=(-0.5, 0.0), shift=(0.0, -1.0), gate=(0.5, 0)
    )
    edits = {VISION: edit}
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(5))
    whole = reconstruct(sae, x, edit) - x
    assert whole.abs().max() > 0.1
    for strength in (0.25, 1.0, 3.0):
        changed = site_actions({VISION: sae}, edits, strength)[VISION](x)
        assert torch.allclose(changed - x, strength * whole, atol=1e-4)
    half = site_actions({VISION: sae}, edits, 1.0)[VISION](x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert site_actions({VISION: sae}, edits, 0) == {}
