# SPDX-License-Identifier: Apache-2.0
"""Some latents are read, and edits scaled, as the SAE's whole maths says."""

import pytest
import torch

from tests.tiny_world import random_sae
from vllm_sauce.concepts import VISION, Concept, SiteEdit
from vllm_sauce.inspection.activation_maps import LatentReader
from vllm_sauce.models.site_edits import concept_edits
from vllm_sauce.sae import reconstruct


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "normed"])
def test_some_latents_read_as_all_of_them(kind):
    sae = random_sae(kind)
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(4))
    some = LatentReader(sae, (4, 0, 19), torch.device("cpu"))(x)
    assert torch.allclose(some, sae.encode(x)[..., [4, 0, 19]], atol=1e-5)
    assert (some > 0).any()


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "normed"])
def test_every_kind_of_sae_is_edited_in_proportion(kind):
    sae = random_sae(kind)
    edit = SiteEdit(
        latents=(3, 11), gamma=(-0.5, 0.0), shift=(0.0, -1.0), gate=(0.5, 0)
    )
    concept = Concept(name="c", domain="d", edits={VISION: edit})
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(5))
    whole = reconstruct(sae, x, edit) - x
    assert whole.abs().max() > 0.1
    for strength in (0.25, 1.0, 3.0):
        changed = concept_edits({VISION: sae}, concept, strength)[VISION](x)
        assert torch.allclose(changed - x, strength * whole, atol=1e-4)
    half = concept_edits({VISION: sae}, concept, 1.0)[VISION](x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert concept_edits({VISION: sae}, concept, 0) == {}
