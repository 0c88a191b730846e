# SPDX-License-Identifier: Apache-2.0
"""SAELens' reader of Qwen-Scope is the oracle."""

import pytest
import torch

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_against_sae_lens,
    detect_format,
    numbers,
    sae_lens_hub,
)
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import LoadOptions, load_foreign

__all__ = ["sae_lens_hub"]
REPO = "Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_5"


def write(folder, name="layer7.sae.pt"):
    parameters = {
        "W_enc": numbers(D_SAE, D_MODEL, seed=1),
        "W_dec": numbers(D_MODEL, D_SAE, seed=2),
        "b_enc": numbers(D_SAE, seed=3),
        "b_dec": numbers(D_MODEL, seed=4),
    }
    torch.save(parameters, folder / name)
    return folder / name


def test_a_layer_is_read(tmp_path, sae_lens_hub):
    file = write(tmp_path)
    assert detect_format(file) == "qwen_scope"
    cfg, state, _ = sae_lens_hub.qwen_scope_sae_huggingface_loader(REPO, file.name)
    loaded = load_foreign(file, options=LoadOptions(name=REPO))
    assert loaded.weights.k == 5
    check_against_sae_lens(loaded.weights, cfg, state, d_in=D_MODEL, d_sae=D_SAE, k=5)


def test_k_comes_from_the_user_or_a_folder_s_name_or_not_at_all(tmp_path):
    with pytest.raises(UnsupportedSAEError, match="--k"):
        load_foreign(write(tmp_path))
    assert load_foreign(write(tmp_path), options=LoadOptions(k=3)).weights.k == 3
    (tmp_path / "W32K-L0_5").mkdir()
    assert load_foreign(write(tmp_path / "W32K-L0_5")).weights.k == 5


def test_a_folder_of_layers_wants_one_named(tmp_path):
    write(tmp_path, "layer0.sae.pt")
    write(tmp_path, "layer1.sae.pt")
    with pytest.raises(UnsupportedSAEError, match=r"layer0.sae.pt, layer1.sae.pt"):
        load_foreign(tmp_path)
