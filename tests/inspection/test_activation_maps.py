# SPDX-License-Identifier: Apache-2.0
"""Latents and rows are read alike, and as the whole SAE reads them."""

import pytest
import torch

from tests.sae.test_rows import merge, sae_of
from vllm_sauce.inspection.activation_maps import LatentReader


@pytest.mark.parametrize("kind", ["standard", "jumprelu", None])
def test_rows_are_read_beside_latents(kind):
    sae = merge(None if kind is None else sae_of(kind))
    latents = (0, sae.d_sae - 1)
    x = torch.randn(3, 7, sae.d_model, generator=torch.Generator().manual_seed(5))
    found = LatentReader(sae, latents, torch.device("cpu"))(x)
    torch.testing.assert_close(found, sae.encode(x)[..., list(latents)])
