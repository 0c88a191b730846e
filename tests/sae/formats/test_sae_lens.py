# SPDX-License-Identifier: Apache-2.0
"""Every kind that SAELens saves for inference; its classes are the oracle."""

import pytest
import torch

from tests.sae.formats.oracle import D_MODEL, D_SAE, check_equal, detect_format
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import load_foreign

pytest.importorskip("sae_lens")


def save(folder, kind, **options):
    from sae_lens import saes

    cfg = getattr(saes, f"{kind}SAEConfig")(d_in=D_MODEL, d_sae=D_SAE, **options)
    sae = getattr(saes, f"{kind}SAE")(cfg)
    with torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in sae.named_parameters():
            parameter.normal_()
            if name == "threshold":
                parameter.abs_()
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize(
    ("kind", "options", "folded"),
    [
        ("Standard", {}, ()),
        ("JumpReLU", {"apply_b_dec_to_input": False}, ()),
        ("Gated", {}, ("gate into a threshold",)),
        ("TopK", {"k": 4}, ()),
        (
            "TopK",
            {"k": 4, "rescale_acts_by_decoder_norm": True},
            ("decoder norms into the encoder",),
        ),
    ],
)
def test_kinds(tmp_path, kind, options, folded):
    theirs = save(tmp_path, kind, **options)
    assert detect_format(tmp_path) == "sae_lens"
    loaded = load_foreign(tmp_path)
    assert loaded.folded == folded
    with torch.no_grad():
        check_equal(loaded.weights, theirs.encode, lambda acts, x: theirs.decode(acts))


def test_the_weights_file_keeps_its_name(tmp_path):
    save(tmp_path, "Standard")
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedSAEError, match="other"):
        load_foreign(tmp_path)
