# SPDX-License-Identifier: Apache-2.0
"""SAELens' own classes are the oracle of its checkpoints."""

import json

import pytest
import torch

from vllm_sauce.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.sae import from_sae_lens

D_MODEL, D_SAE = 6, 17


def save_checkpoint(path, architecture, apply_b_dec=True):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

    kinds = {
        "standard": (StandardSAE, StandardSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    }
    sae_cls, cfg_cls = kinds[architecture]
    sae = sae_cls(cfg_cls(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=apply_b_dec))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.normal_()
            if name == "threshold":
                parameter.abs_()
    sae.save_model(path)
    return sae


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_reads_what_sae_lens_saves(tmp_path, architecture, apply_b_dec):
    theirs = save_checkpoint(tmp_path, architecture, apply_b_dec)
    ours = from_sae_lens(tmp_path)
    x = torch.randn(40, D_MODEL) * 2
    acts = ours.encode(x)
    torch.testing.assert_close(acts, theirs.encode(x).detach())
    torch.testing.assert_close(ours.decode(acts), theirs.decode(acts).detach())
    assert 0 < int((acts > 0).sum()) < acts.numel()


@pytest.mark.parametrize(
    "option",
    [
        {"architecture": "topk"},
        {"architecture": "temporal"},
        {"normalize_activations": "expected_average_only_in"},
        {"rescale_acts_by_decoder_norm": True},
        {"apply_b_dec_to_input": "yes"},
    ],
)
def test_options_that_change_the_maths_are_refused(tmp_path, option):
    save_checkpoint(tmp_path, "standard")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, **option}))
    with pytest.raises(UnsupportedSAEError):
        from_sae_lens(tmp_path)


def test_missing_and_damaged_checkpoints_are_told_apart(tmp_path):
    with pytest.raises(BundleNotFoundError):
        from_sae_lens(tmp_path)
    save_checkpoint(tmp_path, "standard")
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BundleCorruptError):
        from_sae_lens(tmp_path)
