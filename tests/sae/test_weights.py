# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae import SAEWeights, fold_b_dec, reconstruct, weights

D_MODEL, D_SAE = 5, 13


def build_sae(architecture="standard", **overrides):
    rng = torch.Generator().manual_seed(3)
    tensors = {
        "W_enc": torch.randn(D_MODEL, D_SAE, generator=rng),
        "W_dec": torch.randn(D_SAE, D_MODEL, generator=rng),
        "b_enc": torch.randn(D_SAE, generator=rng),
        "b_dec": torch.randn(D_MODEL, generator=rng),
    }
    if architecture == "jumprelu":
        tensors["threshold"] = torch.rand(D_SAE, generator=rng)
    return SAEWeights(**{**tensors, "architecture": architecture, **overrides})


def one_formula(sae, x, edit):
    """design of the served edit, written out latent by latent"""
    change = torch.zeros_like(x)
    b_enc = fold_b_dec(sae.W_enc, sae.b_enc, sae.b_dec)
    if not sae.apply_b_dec_to_input:
        b_enc = sae.b_enc
    for j, gamma, shift, gate in zip(
        edit.latents, edit.gamma, edit.shift, edit.gate, strict=True
    ):
        hidden_pre = x @ sae.W_enc[:, j] + b_enc[j]
        floor = max(gate, 0.0 if sae.threshold is None else float(sae.threshold[j]))
        gain = (hidden_pre > floor) * ((gamma - 1) * hidden_pre + shift)
        change += gain[:, None] * sae.W_dec[j]
    return x + change


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_full_reconstruction_is_the_one_formula(architecture, apply_b_dec):
    sae = build_sae(architecture, apply_b_dec_to_input=apply_b_dec)
    x = torch.randn(64, D_MODEL, generator=torch.Generator().manual_seed(1))
    edit = SiteEdit(
        latents=(11, 0, 4),
        gamma=(-0.5, 0.0, 2.0),
        shift=(0.0, -1.5, 0.25),
        gate=(0.0, 0.4, 1.1),
    )
    want = one_formula(sae, x, edit)
    torch.testing.assert_close(reconstruct(sae, x, edit), want, atol=2e-5, rtol=1e-5)
    assert (want - x).abs().max() > 0.1


def test_jumprelu_is_strict_at_its_threshold():
    sae = build_sae(
        "jumprelu",
        W_enc=torch.ones(D_MODEL, D_SAE),
        b_enc=torch.zeros(D_SAE),
        b_dec=torch.zeros(D_MODEL),
        threshold=torch.full((D_SAE,), 5.0),
    )
    at, above = torch.ones(D_MODEL), torch.ones(D_MODEL) * 2
    assert sae.encode(at).eq(0).all()
    assert sae.encode(above).eq(10).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {"architecture": "topk"},
        {"architecture": "gated"},
        {"architecture": "jumprelu", "threshold": None},
        {"W_dec": torch.zeros(D_MODEL, D_SAE)},
        {"b_enc": torch.zeros(D_SAE, dtype=torch.int32)},
    ],
)
def test_unservable_weights_are_refused(overrides):
    with pytest.raises(UnsupportedSAEError):
        build_sae(**overrides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_in_blocks_is_the_whole_one(monkeypatch, dtype):
    """Whatever is left over for the last block."""
    monkeypatch.setattr(weights, "_BLOCK", 64)
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(10, 23, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(weights.product(x, matrix), x @ matrix.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_one_number_that_is_not_finite_is_found(monkeypatch, value, place):
    monkeypatch.setattr(weights, "_BLOCK", 64)
    numbers = torch.ones(10, 13)
    assert weights.all_finite(numbers) and weights.all_finite(numbers[0, 0])
    numbers.view(-1)[place] = value
    assert not weights.all_finite(numbers)
