# SPDX-License-Identifier: Apache-2.0
"""Configurations of every version of SAELens; what it loads itself is the oracle."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sae.formats.oracle import detect_format, numbers
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae import from_sae_lens
from vllm_sauce.sae.formats import load_foreign
from vllm_sauce.sae.sae_lens_config import INERT, USED, parse_config

pytest.importorskip("sae_lens")

D_MODEL, D_SAE, K = 16, 64, 4

# As version 3 to 5 wrote it.
OLD = {
    "architecture": "standard",
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "gpt2",
    "hook_name": "blocks.1.hook_resid_post",
    "hook_layer": 1,
    "hook_head_index": None,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": "3.20.0",
    "prepend_bos": True,
    "dataset_path": "x",
    "dataset_trust_remote_code": True,
    "context_size": 128,
    "normalize_activations": "none",
    "model_from_pretrained_kwargs": {},
    "seqpos_slice": [None],
}
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}


def write(folder, drop=(), **changes):
    """Write an SAE whose encoder makes about half of the latents positive."""
    config = {name: x for name, x in {**OLD, **changes}.items() if name not in drop}
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = {
        "W_enc": numbers(D_MODEL, D_SAE, seed=1),
        "W_dec": numbers(D_SAE, D_MODEL, seed=2),
        "b_enc": numbers(D_SAE, seed=3, scale=0.1),
        "b_dec": numbers(D_MODEL, seed=4, scale=0.1),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def check_against_sae_lens(folder, active):
    """Compare with SAELens' own loading; ``active`` is what a token may have."""
    from sae_lens import SAE

    theirs = SAE.load_from_disk(folder)
    ours = load_foreign(folder).weights
    x = numbers(40, D_MODEL, seed=9)
    acts = ours.encode(x)
    torch.testing.assert_close(acts, theirs.encode(x).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.decode(acts, x), theirs.decode(acts).detach(), atol=1e-5, rtol=1e-4
    )
    counts = set((acts > 0).sum(-1).tolist())
    assert counts <= set(active), counts
    return counts


def test_an_old_topk_keeps_k_latents(tmp_path):
    """It was read as ReLU: 33 active where 4 are right."""
    folder = write(tmp_path, **TOPK)
    assert detect_format(folder) == "sae_lens"
    assert check_against_sae_lens(folder, {K}) == {K}


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_fn_str": "relu"},
        {"activation_fn_str": "relu", "activation_fn_kwargs": None},
        {"normalize_activations": False},
        {"normalize_activations": None},
        {"normalize_activations": "layer_norm"},
        {"apply_b_dec_to_input": False},
        # Version 2 and before: other names, and more of them.
        {"hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1},
        {"l1_coefficient": 0.1, "noise_scale": 0.1, "normalize_sae_decoder": False},
    ],
)
def test_an_old_relu_is_read_as_sae_lens_reads_it(tmp_path, changes):
    check_against_sae_lens(write(tmp_path, **changes), range(1, D_SAE))


def test_before_version_3_there_was_no_architecture(tmp_path):
    names = ("architecture", "activation_fn_str", "activation_fn_kwargs", "hook_name")
    folder = write(tmp_path, drop=names, hook_point="blocks.1.hook_resid_post")
    assert detect_format(folder) == "sae_lens"
    check_against_sae_lens(folder, range(1, D_SAE))


@pytest.mark.parametrize("activation", ["tanh-relu", "TopK", "gelu", 3, ["topk"]])
@pytest.mark.parametrize("name", ["activation_fn", "activation_fn_str"])
def test_other_activations_are_refused(tmp_path, name, activation):
    folder = write(tmp_path, drop=["activation_fn_str"])
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, name: activation}))
    with pytest.raises(UnsupportedSAEError, match="activation_fn must be 'relu'"):
        from_sae_lens(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**TOPK, "activation_fn_kwargs": {}}, "whole k"),
        ({**TOPK, "activation_fn_kwargs": {"k": 4.5}}, "whole k"),
        ({**TOPK, "activation_fn_kwargs": {"k": 4, "soft": True}}, "nothing else"),
        ({**TOPK, "activation_fn_kwargs": {"k": 4, "signed": True}}, "signed"),
        ({**TOPK, "architecture": "jumprelu"}, "'topk' for 'jumprelu'"),
        ({**TOPK, "architecture": "gated"}, "'topk' for 'gated'"),
        ({"architecture": "topk"}, "'relu' for 'topk'"),
        ({"architecture": 3}, "architecture must be a name"),
        ({"activation_fn": "topk"}, "must agree"),
        ({"normalize_activations": True}, "expected_average_only_in"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "hook_z"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
        ({"finetuning_scaling_factor": 2.0}, "finetuning_scaling_factor"),
    ],
)
def test_what_cannot_be_served_is_refused(changes, message):
    with pytest.raises(UnsupportedSAEError, match=message):
        parse_config({**OLD, **changes}, "cfg.json")


def with_factors(folder, name, factors):
    file = folder / "sae_weights.safetensors"
    save_file({**load_file(file), name: factors}, file)


@pytest.mark.parametrize("said", [True, False])
def test_factors_of_1_do_nothing(tmp_path, said):
    with_factors(write(tmp_path), "scaling_factor", torch.ones(D_SAE))
    write_config = {**OLD, "finetuning_scaling_factor": said}
    (tmp_path / "cfg.json").write_text(json.dumps(write_config))
    check_against_sae_lens(tmp_path, range(1, D_SAE))


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_of_finetuning_scale_what_is_decoded(tmp_path, name):
    """As version 5 did it: ``decode(acts) = (acts * factors) @ W_dec + b_dec``."""
    plain = from_sae_lens(write(tmp_path))
    factors = numbers(D_SAE, seed=5).abs() + 0.5
    write(tmp_path, finetuning_scaling_factor=True)
    with_factors(tmp_path, name, factors)
    loaded = load_foreign(tmp_path)
    assert loaded.folded == ("factors of finetuning into the decoder",)
    x = numbers(40, D_MODEL, seed=9)
    acts = loaded.weights.encode(x)
    torch.testing.assert_close(acts, plain.encode(x))
    torch.testing.assert_close(
        loaded.weights.decode(acts), plain.decode(acts * factors), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("said", "factors", "message"),
    [
        (False, torch.full((D_SAE,), 2.0), "different SAEs"),
        (True, torch.full((3,), 2.0), "one number for each latent"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path, said, factors, message):
    write(tmp_path, finetuning_scaling_factor=said)
    with_factors(tmp_path, "scaling_factor", factors)
    with pytest.raises(UnsupportedSAEError, match=message):
        from_sae_lens(tmp_path)


def test_every_key_that_sae_lens_writes_is_known():
    from sae_lens import saes
    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS

    kinds = ("Standard", "JumpReLU", "Gated", "TopK")
    classes = [
        *(getattr(saes, f"{kind}SAEConfig") for kind in kinds),
        *(getattr(saes, f"{kind}TrainingSAEConfig") for kind in kinds),
        LanguageModelSAERunnerConfig,
        LoggingConfig,
    ]
    written = {field.name for cls in classes for field in dataclasses.fields(cls)}
    # Of transcoders, and where a version 6 keeps the SAE's own configuration.
    written -= {"sae"}
    known = USED | INERT
    assert sorted(written - known) == []
    others = {"hook_name_out", "hook_head_index_out", "hf_hook_name_out"}
    assert sorted(LLM_METADATA_KEYS - others - known) == []
    assert not USED & INERT
