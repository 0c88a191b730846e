# SPDX-License-Identifier: Apache-2.0
"""dictionary_learning's encode and decode, written out, are the oracle."""

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from tests.sae.formats.oracle import (
    D_MODEL,
    D_SAE,
    check_against_sae_lens,
    check_equal,
    detect_format,
    numbers,
    sae_lens_hub,
    write_json,
)
from vllm_sauce.errors import ConfigError, UnsupportedSAEError
from vllm_sauce.sae.formats import LoadOptions, load_foreign

__all__ = ["sae_lens_hub"]
K = 4


class Dictionary(nn.Module):
    """Parameters under the names and in the shapes of dictionary_learning's classes."""

    encoder: nn.Linear
    decoder: nn.Linear
    r_mag: nn.Parameter

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
            self.W_enc = nn.Parameter(torch.empty(D_MODEL, D_SAE))
            self.b_enc = nn.Parameter(torch.empty(D_SAE))
            self.W_dec = nn.Parameter(torch.empty(D_SAE, D_MODEL))
            self.b_dec = nn.Parameter(torch.empty(D_MODEL))
        else:
            gated, new = kind == "GatedAutoEncoder", kind == "AutoEncoderNew"
            self.encoder = nn.Linear(D_MODEL, D_SAE, bias=not gated)
            self.decoder = nn.Linear(D_SAE, D_MODEL, bias=new)
        if kind == "GatedAutoEncoder":
            self.decoder_bias = nn.Parameter(torch.empty(D_MODEL))
            for name in ("r_mag", "gate_bias", "mag_bias"):
                setattr(self, name, nn.Parameter(torch.empty(D_SAE)))
        if kind == "AutoEncoder":
            self.bias = nn.Parameter(torch.empty(D_MODEL))
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            self.b_dec = nn.Parameter(torch.empty(D_MODEL))
        if kind == "JumpReluAutoEncoder":
            self.threshold = nn.Parameter(torch.empty(D_SAE))
        with torch.no_grad():
            for seed, (_, parameter) in enumerate(sorted(self.named_parameters())):
                parameter.copy_(numbers(*parameter.shape, seed=seed, scale=0.7))
        if "TopK" in kind:
            self.register_buffer("k", torch.tensor(K, dtype=torch.int))
            self.register_buffer("threshold", torch.tensor(0.6))
        if kind == "MatryoshkaBatchTopKSAE":
            self.register_buffer("group_sizes", torch.tensor([5, D_SAE - 5]))

    @torch.no_grad()
    def encode(self, x):
        if self.kind == "AutoEncoder":
            return relu(self.encoder(x - self.bias))
        if self.kind == "AutoEncoderNew":
            return relu(self.encoder(x))
        if self.kind == "GatedAutoEncoder":
            x_enc = self.encoder(x - self.decoder_bias)
            f_gate = (x_enc + self.gate_bias > 0).float()
            f_mag = relu(self.r_mag.exp() * x_enc + self.mag_bias)
            return f_gate * f_mag * self.decoder.weight.norm(dim=0, keepdim=True)
        if self.kind == "JumpReluAutoEncoder":
            pre_jump = x @ self.W_enc + self.b_enc
            f = relu(pre_jump * (pre_jump > self.threshold))
            return f * self.W_dec.norm(dim=1)
        if self.kind == "MatryoshkaBatchTopKSAE":
            acts = relu((x - self.b_dec) @ self.W_enc + self.b_enc)
            return acts * (acts > self.threshold)
        acts = relu(self.encoder(x - self.b_dec))
        if self.kind == "BatchTopKSAE":
            return acts * (acts > self.threshold)
        top = acts.topk(K, sorted=False, dim=-1)
        return torch.zeros_like(acts).scatter_(-1, top.indices, top.values)

    @torch.no_grad()
    def decode(self, f, x):
        if self.kind == "AutoEncoder":
            return self.decoder(f) + self.bias
        if self.kind == "AutoEncoderNew":
            return self.decoder(f)
        if self.kind == "GatedAutoEncoder":
            f = f / self.decoder.weight.norm(dim=0, keepdim=True)
            return self.decoder(f) + self.decoder_bias
        if self.kind == "JumpReluAutoEncoder":
            return (f / self.W_dec.norm(dim=1)) @ self.W_dec + self.b_dec
        if self.kind == "MatryoshkaBatchTopKSAE":
            return f @ self.W_dec + self.b_dec
        return self.decoder(f) + self.b_dec


KINDS = [
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
]


def write(folder, kind, config=True):
    trainer = {
        "dict_class": kind,
        "k": K,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m",
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        write_json(
            folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}}
        )
    dictionary = Dictionary(kind)
    torch.save(dictionary.state_dict(), folder / "ae.pt")
    return dictionary


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_read(tmp_path, kind):
    original = write(tmp_path, kind)
    assert detect_format(tmp_path) == "dictionary_learning"
    loaded = load_foreign(tmp_path)
    assert loaded.folded[0] == kind
    check_equal(loaded.weights, original.encode, original.decode)


# Those where SAELens has another convention: it drops the decoder's norm, which only
# rescales latents, so the decoded activation is what is compared.
@pytest.mark.parametrize("kind", ["GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_sae_lens_decodes_the_same(tmp_path, sae_lens_hub, kind):
    from sae_lens import SAE

    write(tmp_path / "sae", kind)
    cfg, state, _ = sae_lens_hub.dictionary_learning_sae_huggingface_loader_1(
        "canrager/lm_sae", "sae"
    )
    theirs = SAE.from_dict(sae_lens_hub.handle_config_defaulting(cfg))
    theirs.load_state_dict(state)
    ours = load_foreign(tmp_path / "sae").weights
    x = numbers(30, D_MODEL, seed=9)
    torch.testing.assert_close(
        ours.decode(ours.encode(x)), theirs(x).detach(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["AutoEncoder", "BatchTopKSAE", "AutoEncoderTopK"])
def test_sae_lens_reads_the_same(tmp_path, sae_lens_hub, kind):
    write(tmp_path / "sae", kind)
    cfg, state, _ = sae_lens_hub.dictionary_learning_sae_huggingface_loader_1(
        "canrager/lm_sae", "sae"
    )
    check_against_sae_lens(load_foreign(tmp_path / "sae").weights, cfg, state)


def test_classes_that_are_saved_alike_must_be_told_apart(tmp_path):
    original = write(tmp_path, "BatchTopKSAE", config=False)
    with pytest.raises(UnsupportedSAEError, match="AutoEncoderTopK or BatchTopKSAE"):
        load_foreign(tmp_path)
    said = LoadOptions(dict_class="BatchTopKSAE")
    loaded = load_foreign(tmp_path, options=said)
    check_equal(loaded.weights, original.encode, original.decode)
    assert (
        load_foreign(
            tmp_path, options=LoadOptions(dict_class="AutoEncoderTopK")
        ).weights.k
        == K
    )
    for wrong in ("AutoEncoder", "Nonsense"):
        with pytest.raises((UnsupportedSAEError, ConfigError), match=wrong):
            load_foreign(tmp_path, options=LoadOptions(dict_class=wrong))


def test_a_class_s_former_name_is_known(tmp_path):
    original = write(tmp_path, "MatryoshkaBatchTopKSAE")
    trainer = {"trainer": {"dict_class": "MatroyshkaBatchTopKSAE"}}
    write_json(tmp_path / "config.json", trainer)
    check_equal(load_foreign(tmp_path).weights, original.encode, original.decode)


def test_a_checkpoint_of_sae_for_vlm(tmp_path):
    """Its files are .pt in a folder called checkpoints, their config one above."""
    original = write(tmp_path, "MatryoshkaBatchTopKSAE")
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "ae_100000.pt"
    (tmp_path / "ae.pt").rename(file)
    check_equal(load_foreign(file).weights, original.encode, original.decode)


def test_an_old_topk_file_has_no_threshold(tmp_path):
    state = Dictionary("AutoEncoderTopK").state_dict()
    del state["threshold"], state["k"]
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(UnsupportedSAEError, match="--k"):
        load_foreign(tmp_path)
    assert load_foreign(tmp_path, options=LoadOptions(k=7)).weights.k == 7


def test_a_threshold_that_was_never_estimated_is_refused(tmp_path):
    state = Dictionary("MatryoshkaBatchTopKSAE").state_dict()
    state["threshold"] = torch.tensor(-1.0)
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(UnsupportedSAEError, match="not estimated"):
        load_foreign(tmp_path)


def test_matrices_that_fit_neither_way_are_refused(tmp_path):
    state = Dictionary("BatchTopKSAE").state_dict()
    state["decoder.weight"] = torch.zeros(D_MODEL, D_SAE + 1)
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(UnsupportedSAEError, match="W_dec must be"):
        load_foreign(tmp_path, options=LoadOptions(dict_class="BatchTopKSAE"))


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight"])
def test_a_transposed_matrix_is_told_by_its_shape(tmp_path, name):
    original = Dictionary("AutoEncoder")
    state = original.state_dict()
    state[name] = state[name].T.contiguous()
    torch.save(state, tmp_path / "ae.pt")
    check_equal(load_foreign(tmp_path).weights, original.encode, original.decode)
