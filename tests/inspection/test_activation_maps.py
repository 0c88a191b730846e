# SPDX-License-Identifier: Apache-2.0
"""Latents and rows are read alike, and as the whole SAE reads them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.sae.test_rows import merge, sae_of
from vllm_sauce.inspection.activation_maps import LatentReader, _image_grid


@pytest.mark.parametrize("kind", ["standard", "jumprelu", None])
def test_rows_are_read_beside_latents(kind):
    sae = merge(None if kind is None else sae_of(kind))
    latents = (0, sae.d_sae - 1)
    x = torch.randn(3, 7, sae.d_model, generator=torch.Generator().manual_seed(5))
    found = LatentReader(sae, latents, torch.device("cpu"))(x)
    torch.testing.assert_close(found, sae.encode(x)[..., list(latents)])


@pytest.mark.parametrize(
    ("rows", "whole", "shape"),
    [
        (49, True, (7, 7)),
        (50, True, (7, 7)),  # behind a class token
        (51, True, (1, 1)),
        (49, False, (1, 1)),
    ],
)
def test_patches_lie_in_a_square_where_they_form_one(rows, whole, shape):
    acts = torch.arange(float(rows))
    batch: Any = SimpleNamespace(whole=whole)
    grid = _image_grid(batch, acts)
    assert grid.shape == shape
    assert grid[-1, -1] == rows - 1
