# SPDX-License-Identifier: Apache-2.0
"""``sauce import`` end to end: the model is run, the bundle loads, refusals say why."""

import os

import pytest
import torch
from safetensors.torch import save_file

from tests.bundle.stand_in_hub import serving
from tests.cli.sauce import sauce
from tests.copies import sauce_in_a_copy
from tests.learning.importing.layouts import (
    LAYOUTS,
    MODEL,
    PICTURES,
    QUESTIONS,
    shipped,
)
from vllm_sauce.bundle import Bundle
from vllm_sauce.learning.importing.site_samples import read_pictures, sample_activations


@pytest.fixture(scope="module")
def vision():
    """The vision site's activations on 16 pictures, by site."""
    return sample_activations(MODEL, "vision", None, read_pictures(PICTURES))


def run(*arguments):
    """Return the exit status, the output and the errors of one command."""
    done = sauce("import", *arguments)
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


@pytest.fixture
def inputs(tmp_path):
    """Options that show the model what the latents' SAEs were trained on."""
    (tmp_path / "texts").write_text("\n".join(QUESTIONS))
    return {
        "vision": ("--pictures", PICTURES),
        "decoder.1": ("--pictures", PICTURES, "--texts", tmp_path / "texts"),
        "decoder.2": ("--pictures", PICTURES, "--texts", tmp_path / "texts"),
    }


@pytest.mark.parametrize(
    ("layout", "site"),
    [("dictionary_learning", "vision"), ("llama_scope", "decoder.1")],
)
def test_a_public_layout_becomes_a_bundle(tmp_path, inputs, layout, site):
    source = LAYOUTS[layout](tmp_path / "foreign", shipped(site))
    out = tmp_path / "bundle"
    options = ("--model", MODEL, "--site", site, "--out", out, *inputs[site])
    status, printed, errors = run(source, *options)
    assert status == 0, errors
    for word in (layout, "jumprelu", "2048", "explained variance", "L0", "folded"):
        assert word in printed
    alike = "(tower layer -1): 0." if site == "vision" else "no other layer"
    assert alike in " ".join(printed.replace("│", " ").split())
    bundle = Bundle.load(out)
    bundle.check_model(MODEL)
    assert (bundle.sites[site].entry.activation["explained_variance"] or 0) > 0.85
    status, _, errors = run(source, *options)
    assert status == 2
    assert "--overwrite" in errors


def test_refusals_leave_nothing(tmp_path, inputs):
    source = LAYOUTS["qwen_scope"](tmp_path / "foreign", shipped("decoder.1"))
    out = tmp_path / "bundle"

    def refused(source, site, word, *more):
        where = ("--model", MODEL, "--site", site, "--out", out)
        status, _, errors = run(source, *where, *inputs[site], *more)
        assert status == 2, errors
        assert word in errors
        assert not out.exists()

    refused(source, "decoder.2", "At decoder.1 it would be 0.")
    refused(source, "vision", "width 192")
    refused(source, "decoder.1", "a format is one of", "--format", "gguf")
    refused(tmp_path / "none", "vision", "neither a path that exists nor a hub name")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    refused(source, "decoder.1", "no whole pickle")


def test_a_pickle_with_code_does_not_run(tmp_path, inputs):
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(sprung),)

    torch.save({"W_enc": Trap()}, tmp_path / "ae.pt")
    where = ("--model", MODEL, "--site", "vision", "--out", tmp_path / "bundle")
    status, _, errors = run(tmp_path / "ae.pt", *where, *inputs["vision"])
    assert status == 2
    assert "nothing of it was run" in errors
    assert not sprung.exists()


def test_one_layer_of_a_repository_on_the_hub(tmp_path, vision):
    """The real client: it reads its address at import, so each run is a process."""
    folder = LAYOUTS["gemma_scope"](tmp_path / "foreign", shipped("vision"))
    params = (folder / "params.npz").read_bytes()
    activations = tmp_path / "activations.safetensors"
    save_file({"vision": vision["vision"]}, activations)

    def run_apart(source, out, **env):
        options = ("--subfolder", "resid_post/layer_1", "--activations", activations)
        where = ("--model", MODEL, "--site", "vision", "--out", tmp_path / out)
        home = {"HF_HOME": tmp_path / "hf", "HF_HUB_DISABLE_XET": "1"}
        done = sauce_in_a_copy("import", source, *options, *where, env=home | env)
        return done.exit_code, " ".join(done.stderr.split())

    with serving() as hub:
        other = {"resid_post/layer_2/params.npz": b"another layer"}
        hub.commit("org/scope", {"resid_post/layer_1/params.npz": params, **other})
        commit = list(hub.repos["org/scope"])[-1]
        status, errors = run_apart("org/scope", "b1", HF_ENDPOINT=hub.address)
        assert status == 0, errors
    assert len(list((tmp_path / "hf").rglob("params.npz"))) == 1
    status, errors = run_apart(f"org/scope@{commit}", "b2", HF_HUB_OFFLINE="1")
    assert status == 0, errors
    first, again = (Bundle.load(tmp_path / name).digest for name in ("b1", "b2"))
    assert first == again
