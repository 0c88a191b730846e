# SPDX-License-Identifier: Apache-2.0
"""Of a configuration every key is read, known to change nothing, or refused by name."""

import json

import pytest
import torch

from tests.learning.importing.layouts import sae_lens as write_sae_lens
from tests.sae.formats import (
    test_dictionary_learning,
    test_gemma_scope,
    test_llama_scope,
    test_openai,
    test_qwen_scope,
    test_sparsify,
)
from tests.sae.formats.oracle import D_MODEL, D_SAE, numbers, write_json
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.formats import (
    FORMATS,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    load_foreign,
    openai,
    qwen_scope,
    sparsify,
)
from vllm_sauce.sae.sae_lens_config import INERT as SAE_LENS_INERT


def write_dictionary_learning(folder):
    test_dictionary_learning.write(folder, "BatchTopKSAE")
    config = {
        "trainer": {"dict_class": "BatchTopKSAE", "k": 4},
        "buffer": {"io": "out"},
    }
    return write_json(folder / "config.json", config) / "config.json"


def write_gemma_scope(folder):
    return test_gemma_scope.write_2(folder) / "config.json"


def write_llama_scope(folder):
    return test_llama_scope.write(folder)[0] / "hyperparams.json"


def write_qwen_scope(folder):
    test_qwen_scope.write(folder)
    # Of Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, with the sizes of the test's SAE.
    config = {
        "model_type": "topk_sae",
        "base_model": "Qwen/Qwen3-1.7B-Base",
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "k": 5,
        "num_layers": 28,
        "hook_point": "resid_post",
        "dtype": "float32",
    }
    return write_json(folder / "config.json", config) / "config.json"


def write_sparsify(folder):
    test_sparsify.write(folder)
    return folder / "cfg.json"


def write_lens(folder):
    sae = SAEWeights(
        W_enc=numbers(D_MODEL, D_SAE, seed=1),
        W_dec=numbers(D_SAE, D_MODEL, seed=2),
        b_enc=numbers(D_SAE, seed=3),
        b_dec=numbers(D_MODEL, seed=4),
    )
    return write_sae_lens(folder, sae) / "cfg.json"


def write_openai(folder):
    test_openai.write(folder / "sae.pt", "ReLU")
    return write_json(folder / "config.json", {}) / "config.json"


WRITERS = {
    "dictionary_learning": (write_dictionary_learning, ()),
    "gemma_scope": (write_gemma_scope, gemma_scope.INERT),
    "llama_scope": (write_llama_scope, llama_scope.INERT),
    "openai": (write_openai, ()),
    "qwen_scope": (write_qwen_scope, qwen_scope.INERT),
    "sae_lens": (write_lens, SAE_LENS_INERT),
    "sparsify": (write_sparsify, sparsify.INERT),
}
CASES = [(name, *entry) for name, entry in WRITERS.items()]


def test_every_format_is_tested():
    assert set(WRITERS) == set(FORMATS)


def change(config, **changes):
    """Add keys to a configuration; returns the folder of the SAE."""
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return config.parent


def same(ours, theirs):
    """Whether two SAEs encode alike, and as many latents."""
    x = numbers(20, ours.d_model, seed=9)
    return bool(torch.equal(ours.encode(x), theirs.encode(x)))


@pytest.mark.parametrize(("name", "write", "inert"), CASES)
def test_keys_without_effect_have_none(tmp_path, name, write, inert):
    config = write(tmp_path)
    plain = load_foreign(config.parent, format=name).weights
    folder = change(config, **dict.fromkeys(inert, "anything"))
    assert same(load_foreign(folder, format=name).weights, plain)


@pytest.mark.parametrize(("name", "write", "inert"), CASES)
def test_an_unknown_key_is_refused_by_name_and_value(tmp_path, name, write, inert):
    folder = change(write(tmp_path), input_whitening={"by": "covariance"})
    with pytest.raises(UnsupportedSAEError, match="input_whitening = {'by': 'cov"):
        load_foreign(folder, format=name)


@pytest.mark.parametrize(("name", "write", "inert"), CASES)
def test_a_long_list_of_unknown_keys_is_cut(tmp_path, name, write, inert):
    unknown = {f"unknown_{number}": "x" * 1000 for number in range(9)}
    with pytest.raises(UnsupportedSAEError, match="and 4 more") as caught:
        load_foreign(change(write(tmp_path), **unknown), format=name)
    assert len(str(caught.value)) < 1000


OPTIONS = [
    (name, write, option)
    for (name, write, _), module in zip(
        CASES,
        (
            dictionary_learning,
            gemma_scope,
            llama_scope,
            openai,
            qwen_scope,
            None,
            sparsify,
        ),
        strict=True,
    )
    for option in getattr(module, "OPTIONS", {})
]


@pytest.mark.parametrize(("name", "write", "option"), OPTIONS)
def test_an_option_that_changes_the_maths_is_refused(tmp_path, name, write, option):
    folder = change(write(tmp_path), **{option: "another"})
    with pytest.raises(UnsupportedSAEError, match=f"{option} must be .*'another'"):
        load_foreign(folder, format=name)


@pytest.mark.parametrize("part", ["trainer", "buffer"])
def test_the_parts_of_dictionary_learning_s_config(tmp_path, part):
    config = write_dictionary_learning(tmp_path)
    plain = load_foreign(tmp_path).weights
    said = json.loads(config.read_text())[part]
    inert = {
        "trainer": dictionary_learning.TRAINER_INERT,
        "buffer": dictionary_learning.BUFFER_INERT,
    }[part]
    change(config, **{part: {**dict.fromkeys(inert, "anything"), **said}})
    assert same(load_foreign(tmp_path).weights, plain)
    change(config, **{part: {**said, "use_pca_whitening": True}})
    with pytest.raises(
        UnsupportedSAEError, match=f"{part}: .*use_pca_whitening = True"
    ):
        load_foreign(tmp_path)


def test_a_transcoder_of_dictionary_learning_is_refused(tmp_path):
    change(write_dictionary_learning(tmp_path), buffer={"io": "in_and_out"})
    with pytest.raises(UnsupportedSAEError, match="transcoder"):
        load_foreign(tmp_path)


def test_qwen_scope_s_config_says_k(tmp_path):
    config = write_qwen_scope(tmp_path)
    assert load_foreign(tmp_path).weights.k == 5
    with pytest.raises(UnsupportedSAEError, match="whole number"):
        load_foreign(change(config, k="many"))


@pytest.mark.parametrize("more", [{"kappa": 3}, {"k": 4}])
def test_openai_s_activation_has_no_unknown_state(tmp_path, more):
    state = test_openai.write(tmp_path / "sae.pt", "ReLU")
    state["activation_state_dict"].update(more)
    torch.save(state, tmp_path / "sae.pt")
    with pytest.raises(UnsupportedSAEError, match="ReLU cannot have"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("name", ["gemma_scope", "llama_scope", "openai", "sparsify"])
def test_tensors_that_an_sae_has_not_are_refused(tmp_path, name):
    folder = WRITERS[name][0](tmp_path).parent
    (file,) = (
        path
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".npz", ".pt")
    )
    if file.suffix == ".pt":
        torch.save({**torch.load(file), "W_skip": torch.ones(2)}, file)
    else:
        from safetensors.torch import load_file, save_file

        save_file({**load_file(file), "W_skip": torch.ones(2)}, file)
    with pytest.raises(UnsupportedSAEError, match="W_skip besides an SAE"):
        load_foreign(folder, format=name)
