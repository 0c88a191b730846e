# SPDX-License-Identifier: Apache-2.0
"""An SAE that was read rightly passes; each usual mistake is named, with a figure."""

from dataclasses import replace

import pytest
import torch

from tests.learning.importing.layouts import shipped
from vllm_sauce.errors import BundleMismatchError, ReconstructionError
from vllm_sauce.learning.importing.readings import check_reconstruction
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.folding import fold_input_scale
from vllm_sauce.sae.quality import sae_quality


def square(x):
    """Return an SAE with d_sae = d_model that reconstructs x; all latents positive."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator))[0]
    lift = 1 - (x @ turn).min(0).values
    return SAEWeights(
        W_enc=turn.contiguous(),
        W_dec=turn.T.contiguous(),
        b_enc=lift,
        b_dec=-lift @ turn.T,
        apply_b_dec_to_input=False,
    )


def test_the_shipped_saes_pass(vision, decoder):
    assert check_reconstruction(shipped("vision"), "vision", vision).quality.l0 < 40
    quality = check_reconstruction(shipped("decoder.1"), "decoder.1", decoder).quality
    assert quality.explained_variance > 0.85


def test_a_square_sae_passes_and_its_transposes_do_not(decoder):
    sae = square(decoder["decoder.1"])
    quality = check_reconstruction(sae, "decoder.1", decoder).quality
    assert quality.explained_variance > 0.99
    for words, change in (
        ("W_enc", {"W_enc": sae.W_enc.T}),
        ("W_dec", {"W_dec": sae.W_dec.T}),
        ("both matrices", {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec.T}),
    ):
        hint = f"[Ww]ith {words} transposed it would be 1.00"
        with pytest.raises(ReconstructionError, match=hint):
            check_reconstruction(replace(sae, **change), "decoder.1", decoder)


@pytest.mark.parametrize("site", ["vision", "decoder.1"])
def test_a_wrong_b_dec_convention_is_refused(site, vision, decoder):
    wrong = replace(shipped(site), apply_b_dec_to_input=False)
    seen = vision if site == "vision" else decoder
    with pytest.raises(ReconstructionError) as caught:
        check_reconstruction(wrong, site, seen)
    text = str(caught.value)
    assert "explains -" in text
    assert "at least 0.3 is wanted" in text
    assert "With b_dec subtracted from the input it would be 0." in text


@pytest.mark.parametrize("site", ["decoder.0", "decoder.2", "decoder.3"])
def test_a_wrong_layer_is_refused_though_it_explains_much(site, decoder):
    sae = shipped("decoder.1")
    with pytest.raises(ReconstructionError, match="t decoder.1 it would be 0.9"):
        check_reconstruction(sae, site, decoder)
    if site == "decoder.2":
        quality = check_reconstruction(sae, site, decoder, compare=False).quality
        here = sae_quality(sae, decoder["decoder.1"]).explained_variance
        assert quality.explained_variance > 0.5
        assert 1 - quality.explained_variance > 1.5 * (1 - here)


@pytest.mark.parametrize("layer", [-4, -3])
def test_a_wrong_layer_of_the_tower_is_refused(layer, vision):
    other = f"vision (tower layer {layer})"
    swapped = {"vision": vision[other], "vision (tower layer -2)": vision["vision"]}
    hint = r"t vision \(tower layer -2\) it would be 0.87"
    with pytest.raises(ReconstructionError, match=hint):
        check_reconstruction(shipped("vision"), "vision", swapped)


def test_a_layer_that_is_explained_as_well_is_told(vision, decoder):
    """sauce-tiny's last tower layer adds little: what is explained cannot tell."""
    other = "vision (tower layer -1)"
    sae = shipped("vision")
    there = sae_quality(sae, vision[other]).explained_variance
    here = sae_quality(sae, vision["vision"]).explained_variance
    assert 0 < here - there < 0.01
    told = check_reconstruction(sae, "vision", vision).alike
    assert told == {other: pytest.approx(there, abs=0.03)}
    swapped = {"vision": vision[other], "vision (tower layer -2)": vision["vision"]}
    last = check_reconstruction(sae, "vision", swapped).alike
    assert set(last) == {"vision (tower layer -2)"}
    assert not check_reconstruction(shipped("decoder.1"), "decoder.1", decoder).alike
    # A layer of another width cannot be meant.
    wide = {**decoder, "vision": vision["vision"]}
    assert not check_reconstruction(shipped("decoder.1"), "decoder.1", wide).alike


def test_an_input_scale_that_was_not_folded_is_named(decoder):
    """Trained on inputs of norm sqrt(d_model), and used on inputs as they are."""
    x = decoder["decoder.1"]
    scale = float(x.shape[1] ** 0.5 / x.norm(dim=1).mean())
    sae = shipped("decoder.1")
    unfolded = fold_input_scale(sae, 1 / scale)
    with pytest.raises(ReconstructionError, match="input scaled by 0.16. it would be"):
        check_reconstruction(unfolded, "decoder.1", decoder)


def test_an_sae_of_noise_gets_no_hint(decoder):
    sae = square(torch.randn(50, 192))
    noise = replace(sae, W_dec=torch.randn(192, 192))
    with pytest.raises(ReconstructionError, match="no other|No other"):
        check_reconstruction(noise, "decoder.1", decoder)


def test_the_floor_is_the_caller_s(vision):
    with pytest.raises(ReconstructionError, match="at least 0.99 is wanted"):
        check_reconstruction(
            shipped("vision"), "vision", vision, min_explained_variance=0.99
        )


def test_another_width_is_another_model(vision):
    with pytest.raises(BundleMismatchError, match="width 192.*have 256"):
        check_reconstruction(shipped("decoder.1"), "vision", vision)
