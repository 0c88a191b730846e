# SPDX-License-Identifier: Apache-2.0
"""Every kind of SAE, from SAELens' checkpoint to the op; SAELens is the oracle."""

from dataclasses import replace

import pytest
import torch

from tests.unlearning.catalogues import DIGEST
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae import from_sae_lens, reconstruct
from vllm_sauce.unlearning.fp8 import FP8, quantize_rows
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit import (
    masked_edit,
    masked_edit_eager,
    masked_edit_ref,
)

D_MODEL, D_SAE, K = 24, 70, 20
EDIT = SiteEdit(
    latents=tuple(range(3, 45, 2)),
    gamma=tuple(-0.5 - 0.1 * i for i in range(21)),
    shift=tuple(0.2 * i for i in range(21)),
    gate=tuple(0.05 * (i % 4) for i in range(21)),
)
CATALOGUE = Catalogue([Concept(name="dog", domain="objects", edits={"vision": EDIT})])
FORMS = {"reference": masked_edit_ref, "cpu": masked_edit_eager}


def lens_sae(kind, **options):
    """Return a random SAE of SAELens' own class."""
    from sae_lens.saes import gated_sae, jumprelu_sae, standard_sae, topk_sae

    classes = {
        "standard": (standard_sae.StandardSAE, standard_sae.StandardSAEConfig),
        "jumprelu": (jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig),
        "gated": (gated_sae.GatedSAE, gated_sae.GatedSAEConfig),
        "topk": (topk_sae.TopKSAE, topk_sae.TopKSAEConfig),
    }
    sae_cls, cfg_cls = classes[kind]
    if kind == "topk":
        options["k"] = K
    sae = sae_cls(cfg_cls(d_in=D_MODEL, d_sae=D_SAE, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.normal_(generator=generator)
            if name == "threshold":
                parameter.abs_()
            if name == "r_mag":
                parameter.mul_(0.5)
    return sae


@torch.no_grad()
def oracle(sae, x):
    """decode(edit(encode(x))) + error, in SAELens' calls alone."""
    acts = sae.encode(x)
    plain = sae.decode(acts)
    edited = acts.clone()
    for latent, gamma, shift, gate in zip(
        EDIT.latents, EDIT.gamma, EDIT.shift, EDIT.gate, strict=True
    ):
        z = acts[:, latent]
        edited[:, latent] = torch.where(z > gate, gamma * z + shift, z)
    sae.encode(x)  # decoding used up the norm of x that encoding had kept
    return sae.decode(edited) + (x - plain), acts


OPTIONS = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
]
CASES = [
    (kind, options)
    for kind in ("standard", "jumprelu", "gated", "topk")
    for options in OPTIONS
] + [
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    (
        "topk",
        {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"},
    ),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_the_op_does_what_sae_lens_would(tmp_path, kind, options, form):
    theirs = lens_sae(kind, **options)
    theirs.save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(2)) + 0.3
    want, acts = oracle(theirs, x)
    fired = acts[:, list(EDIT.latents)] > 0
    assert 0 < int(fired.sum()) < fired.numel()
    table = SiteTable(sae, CATALOGUE, "vision", num_slots=1, max_latents=21)
    slots = table.assign([Mask.of([("dog", 1.0)], DIGEST)]) * len(x)
    residual = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    hidden_states = x - residual
    slot_of_token = torch.tensor(slots, dtype=torch.int32)
    FORMS[form](hidden_states, residual, slot_of_token, **table.op_args())
    assert (want - x).abs().max() > 1
    torch.testing.assert_close(hidden_states + residual, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_our_full_maths_is_sae_lens(tmp_path, kind, options):
    theirs = lens_sae(kind, **options)
    theirs.save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(2)) + 0.3
    want, _ = oracle(theirs, x)
    torch.testing.assert_close(reconstruct(sae, x, EDIT), want, rtol=1e-4, atol=1e-3)


def test_topk_keeps_the_whole_encoder_and_only_the_edited_decoder(tmp_path):
    lens_sae("topk").save_model(tmp_path)
    table = SiteTable(from_sae_lens(tmp_path), CATALOGUE, "vision", 1, 21)
    assert table.topk == K
    assert table.W_enc_rows.shape == (D_SAE, D_MODEL)
    assert table.W_dec_rows.shape == (21, D_MODEL)


def test_decoding_a_normalised_sae_needs_its_input(tmp_path):
    lens_sae("standard", normalize_activations="layer_norm").save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    with pytest.raises(UnsupportedSAEError, match="give decode the x"):
        sae.decode(torch.zeros(2, D_SAE))


def test_relu_in_place_of_ranks_edits_every_positive_latent(tmp_path):
    """The named approximation: more is edited than TopK would, the encoder is cut."""
    theirs = lens_sae("topk")
    theirs.save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(2))
    as_relu = replace(sae, k=None, architecture="standard")
    want = reconstruct(as_relu, x, EDIT)
    assert (want - reconstruct(sae, x, EDIT)).abs().max() > 1
    table = SiteTable(sae, CATALOGUE, "vision", 1, 21, approximate="relu")
    assert table.topk == 0 and table.W_enc_rows.shape == (21, D_MODEL)
    slots = table.assign([Mask.of([("dog", 1.0)], DIGEST)]) * len(x)
    masked_edit(x, None, torch.tensor(slots, dtype=torch.int32), **table.op_args())
    torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-3)


def test_the_approximation_leaves_other_kinds_alone(tmp_path):
    lens_sae("jumprelu").save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    exact = SiteTable(sae, CATALOGUE, "vision", 1, 21)
    table = SiteTable(sae, CATALOGUE, "vision", 1, 21, approximate="relu")
    assert table.approximate is None
    for name in ("W_enc_rows", "b_enc"):
        assert torch.equal(getattr(table, name), getattr(exact, name))


def rounded_rows(rows):
    """Return rows as they are after a way through fp8, in float32."""
    quantized, scale = quantize_rows(rows)
    return quantized.float() * scale[:, None]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("standard", {}),
        ("jumprelu", {"normalize_activations": "layer_norm"}),
        ("topk", {}),
    ],
    ids=str,
)
def test_fp8_rows_act_as_the_rows_they_hold(tmp_path, kind, options):
    """Every scale ends where it belongs: the edit is that of the dequantised rows."""
    lens_sae(kind, **options).save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    latents = list(EDIT.latents)
    rounded = {"W_dec": sae.W_dec.clone(), "W_enc": sae.W_enc.clone()}
    rounded["W_dec"][latents] = rounded_rows(sae.W_dec[latents])
    b_enc = sae.b_enc
    if kind != "topk":  # ranks compare rows, so the encoder stays as it is
        rounded["W_enc"][:, latents] = rounded_rows(sae.W_enc[:, latents].T).T
        # b_dec is folded with the exact rows.
        if sae.apply_b_dec_to_input:
            b_enc = b_enc + sae.b_dec @ (rounded["W_enc"] - sae.W_enc)
    held = replace(sae, b_enc=b_enc, W_enc=rounded["W_enc"], W_dec=rounded["W_dec"])
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(2)) + 0.3
    want = reconstruct(held, x, EDIT)
    table = SiteTable(sae, CATALOGUE, "vision", 1, 21, fp8=True)
    assert table.W_dec_rows.dtype == FP8
    assert (table.W_enc_rows.dtype == FP8) == (kind != "topk")
    slots = table.assign([Mask.of([("dog", 1.0)], DIGEST)]) * len(x)
    got = x.clone()
    masked_edit(got, None, torch.tensor(slots, dtype=torch.int32), **table.op_args())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    exact = reconstruct(sae, x, EDIT)
    error = float((got - exact).norm() / (exact - x).norm())
    # e4m3 keeps 3 bits: a row is off by about 2.5 %.
    assert 0.002 < error < 0.1


def test_fp8_rows_take_a_quarter(tmp_path):
    lens_sae("standard").save_model(tmp_path)
    sae = from_sae_lens(tmp_path)
    whole = SiteTable(sae, CATALOGUE, "vision", 1, 21)
    table = SiteTable(sae, CATALOGUE, "vision", 1, 21, fp8=True)
    biases = 4 * 21
    assert table.pool_bytes - biases == (whole.pool_bytes - biases) / 4


def test_rows_of_zeros_survive_fp8():
    quantized, scale = quantize_rows(torch.zeros(2, 3))
    assert not quantized.float().any() and torch.equal(scale, torch.ones(2))
