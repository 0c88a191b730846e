# SPDX-License-Identifier: Apache-2.0
"""Formats are told by content; what is not known is described."""

import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import detect_format, write_json
from tests.sae.formats.test_sparsify import write as write_sparsify
from vllm_sauce.errors import BundleCorruptError, ConfigError, UnsupportedSAEError
from vllm_sauce.sae.formats import FORMATS, LoadOptions, load_foreign


def test_unknown_content_is_described_beside_what_is_known(tmp_path):
    save_file({"up.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"hidden_size": 3})
    with pytest.raises(UnsupportedSAEError) as caught:
        detect_format(tmp_path)
    for word in ("up.weight [2, 3]", "hidden_size", *FORMATS):
        assert word in str(caught.value)


def test_ambiguous_content_wants_a_format(tmp_path):
    """The tensors of sparsify and of lm_saes in one file, both described."""
    write_sparsify(tmp_path, norm_activation="inference")
    extra = {"decoder.weight": torch.ones(6, 17)}
    from safetensors.torch import load_file

    file = tmp_path / "sae.safetensors"
    save_file({**load_file(file), **extra}, file)
    with pytest.raises(UnsupportedSAEError, match="llama_scope or sparsify.*--format"):
        detect_format(tmp_path)
    with pytest.raises(UnsupportedSAEError, match="norm_activation = 'inference'"):
        load_foreign(tmp_path, format="sparsify")


def test_a_forced_format_must_exist_and_fit(tmp_path):
    write_sparsify(tmp_path)
    with pytest.raises(ConfigError, match="sae_lens"):
        load_foreign(tmp_path, format="gguf")
    for name in set(FORMATS) - {"sparsify", "sae_lens"}:
        with pytest.raises(UnsupportedSAEError):
            load_foreign(tmp_path, format=name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(tmp_path, value):
    parameters = write_sparsify(tmp_path)
    parameters["b_dec"][0] = value
    save_file(parameters, tmp_path / "sae.safetensors")
    with pytest.raises(BundleCorruptError, match="b_dec must hold finite"):
        load_foreign(tmp_path)


def test_double_precision_becomes_single(tmp_path):
    parameters = {name: x.double() for name, x in write_sparsify(tmp_path).items()}
    save_file(parameters, tmp_path / "sae.safetensors")
    assert load_foreign(tmp_path).weights.W_enc.dtype == torch.float32


D, N = 3, 5


def _qwen(**changes):
    made = {
        "W_enc": torch.ones(N, D),
        "W_dec": torch.ones(D, N),
        "b_enc": torch.ones(N),
        "b_dec": torch.ones(D),
    }
    return {**made, **changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"W_enc": torch.ones(N, D).to_sparse()}, "W_enc.*sparse_coo"),
        # Four terabytes, claimed by a file of two kilobytes.
        ({"W_enc": torch.ones(1, 1).expand(10**6, 10**6)}, "1 numbers for the shape"),
        ({"W_enc": torch.ones(N, D, device="meta")}, "without numbers"),
        ({"b_dec": torch.ones(0)}, "the empty"),
        ({"b_enc": torch.tensor(1.0)}, "one dimension"),
        ({"W_enc": torch.ones(N, D).to(torch.complex64)}, "floating point"),
        ({"W_enc": torch.ones(N, D, dtype=torch.int64)}, "floating point"),
        ({"W_enc": torch.ones(N, D + 1)}, "W_enc must be"),
        ({"W_dec": torch.ones(N)}, "W_dec must be"),
    ],
)
def test_what_is_no_dense_matrix_of_numbers(tmp_path, changes, word):
    torch.save(_qwen(**changes), tmp_path / "layer1.sae.pt")
    with pytest.raises(UnsupportedSAEError, match=word):
        load_foreign(tmp_path, options=LoadOptions(k=2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2)])
    torch.save(_qwen(b_enc=nested), tmp_path / "layer1.sae.pt")
    with pytest.raises(UnsupportedSAEError, match=r"b_enc.*nested"):
        load_foreign(tmp_path, options=LoadOptions(k=2))


def test_more_latents_a_token_than_there_are(tmp_path):
    torch.save(_qwen(), tmp_path / "layer1.sae.pt")
    assert load_foreign(tmp_path, options=LoadOptions(k=N)).weights.k == N
    with pytest.raises(UnsupportedSAEError, match="1..d_sae=5, got 6"):
        load_foreign(tmp_path, options=LoadOptions(k=N + 1))


def test_eight_bits_become_single_precision(tmp_path):
    small = {name: x.to(torch.float8_e4m3fn) for name, x in _qwen().items()}
    torch.save(small, tmp_path / "layer1.sae.pt")
    weights = load_foreign(tmp_path, options=LoadOptions(k=2)).weights
    assert {x.dtype for x in weights.tensors().values()} == {torch.float32}
    torch.testing.assert_close(weights.W_enc, torch.ones(D, N))


@pytest.mark.parametrize("missing", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_missing_tensor_is_told_by_what_is_there(tmp_path, missing):
    state = _qwen()
    del state[missing]
    torch.save(state, tmp_path / "layer1.sae.pt")
    for options in ({}, {"format": "qwen_scope"}):
        with pytest.raises(UnsupportedSAEError) as caught:
            load_foreign(tmp_path, **options, options=LoadOptions(k=2))
        assert all(name in str(caught.value) for name in state)
