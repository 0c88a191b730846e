# SPDX-License-Identifier: Apache-2.0
"""Formats are told by content; what is not known is described."""

import pytest
import torch
from safetensors.torch import save_file

from tests.sae.formats.oracle import write_json
from tests.sae.formats.test_sparsify import write as write_sparsify
from vllm_sauce.errors import BundleCorruptError, ConfigError, UnsupportedSAEError
from vllm_sauce.sae.formats import FORMATS, detect_format, load_foreign


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
    assert load_foreign(tmp_path, format="sparsify").format == "sparsify"


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
