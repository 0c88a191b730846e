# SPDX-License-Identifier: Apache-2.0
"""Some latents are read, and edits scaled, as the SAE's whole maths says."""

import pytest
import torch

from tests.tiny_world import random_sae
from vllm_sauce.inspection.activation_maps import LatentReader


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "normed"])
def test_some_latents_read_as_all_of_them(kind):
    sae = random_sae(kind)
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(4))
    some = LatentReader(sae, (4, 0, 19), torch.device("cpu"))(x)
    assert torch.allclose(some, sae.encode(x)[..., [4, 0, 19]], atol=1e-5)
    assert (some > 0).any()
