# SPDX-License-Identifier: Apache-2.0
"""SAELens' readers of both Gemma Scopes are the oracle."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_against_sae_lens,
    detect_format,
    numbers,
    sae_lens_hub,
    write_json,
)
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.formats import load_foreign

__all__ = ["sae_lens_hub"]


def tensors(upper=False, d_sae=D_SAE):
    w = "W" if upper else "w"
    return {
        f"{w}_enc": numbers(D_MODEL, d_sae, seed=1),
        f"{w}_dec": numbers(d_sae, D_MODEL, seed=2),
        "b_enc": numbers(d_sae, seed=3),
        "b_dec": numbers(D_MODEL, seed=4),
        "threshold": numbers(d_sae, seed=5).abs(),
    }


def write_npz(folder, **kind):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: x.numpy() for name, x in tensors(upper=True, **kind).items()}
    np.savez(folder / "params.npz", **arrays)
    return folder


def test_gemma_scope_1(tmp_path, sae_lens_hub):
    name = "layer_3/width_16k/average_l0_71"
    folder = write_npz(tmp_path / name)
    assert detect_format(folder) == "gemma_scope"
    cfg, state, _ = sae_lens_hub.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", name
    )
    loaded = load_foreign(folder)
    check_against_sae_lens(loaded.weights, cfg, state, d_in=D_MODEL, d_sae=D_SAE)
    assert not loaded.weights.apply_b_dec_to_input
    assert loaded.folded == ()


def write_2(folder, extra=None, **config):
    write_json(
        folder / "config.json",
        {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-4b-it",
            "hf_hook_point_in": "model.layers.9.output",
            **config,
        },
    )
    save_file({**tensors(), **(extra or {})}, folder / "params.safetensors")
    return folder


def test_gemma_scope_2(tmp_path, sae_lens_hub, monkeypatch):
    name = "resid_post/layer_9_width_16k_l0_small"
    folder = write_2(tmp_path / name)
    assert detect_format(folder) == "gemma_scope"
    shapes = {"w_enc": [D_MODEL, D_SAE], "w_dec": [D_SAE, D_MODEL]}
    monkeypatch.setattr(
        sae_lens_hub, "get_safetensors_tensor_shapes", lambda *_: shapes
    )
    cfg, state, _ = sae_lens_hub.gemma_3_sae_huggingface_loader(
        "google/gemma-scope-2-4b-it", name
    )
    check_against_sae_lens(load_foreign(folder).weights, cfg, state)


def test_transcoders_are_refused(tmp_path):
    skip = {"affine_skip_connection": torch.zeros(D_MODEL, D_MODEL)}
    with pytest.raises(UnsupportedSAEError, match="transcoder"):
        load_foreign(write_2(tmp_path / "a", skip))
    with pytest.raises(UnsupportedSAEError, match="transcoder"):
        load_foreign(write_2(tmp_path / "b", hf_hook_point_out="model.layers.9.mlp"))
    with pytest.raises(UnsupportedSAEError, match="architecture"):
        load_foreign(write_2(tmp_path / "c", architecture="topk"))


def test_a_square_sae_keeps_the_orientation_of_the_format(tmp_path):
    loaded = load_foreign(write_npz(tmp_path, d_sae=D_MODEL))
    torch.testing.assert_close(loaded.weights.W_enc, numbers(D_MODEL, D_MODEL, seed=1))
