# SPDX-License-Identifier: Apache-2.0
"""Every layout becomes a bundle that loads and fits the model; failures leave none."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.learning.importing.layouts import LAYOUTS, MODEL, gemma_scope, shipped
from tests.learning.importing.test_readings import square
from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.errors import (
    BundleCorruptError,
    BundleError,
    BundleMismatchError,
    BundleNotFoundError,
    ConfigError,
    ReconstructionError,
)
from vllm_sauce.learning.importing.import_sae import import_sae
from vllm_sauce.learning.importing.settings import ImportRequest

# Files are opened and half written, then the process is gone.
STOPPED = """
import os, resource, signal
import safetensors.torch
from vllm_sauce.sae import tensors_file

def kill_while_writing():
    def save(tensors, file):
        with open(file, "wb") as half:
            half.write(safetensors.torch.save(tensors)[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    tensors_file.write_tensors = save

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{mishap}
from vllm_sauce.cli import app
app({command})
"""


@pytest.fixture
def request_for(tmp_path, vision, decoder):
    """Make a request that is checked on activations from a file."""
    file = tmp_path / "activations.safetensors"
    save_file({**vision, **decoder}, file)

    def make(source, site, **options):
        return ImportRequest(
            **{
                "source": str(source),
                "model": str(MODEL),
                "site": site,
                "out": tmp_path / "bundle",
                "activations": file,
                **options,
            }
        )

    return make


@pytest.mark.parametrize("site", ["vision", "decoder.1"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_a_bundle(
    tmp_path, request_for, name, site, vision, decoder
):
    source = LAYOUTS[name](tmp_path / "foreign", shipped(site))
    steps: list[str] = []
    imported = import_sae(request_for(source, site), steps.append)
    assert imported.foreign.format == name
    assert imported.quality.explained_variance > 0.85
    last = "vision (tower layer -1)"
    assert set(imported.alike) == ({last} if site == "vision" else set())
    assert steps[0] == "finding the SAE"
    assert steps[-1] == "writing the bundle"
    bundle = Bundle.load(tmp_path / "bundle")
    bundle.check_model(MODEL)
    assert set(bundle.sites) == {site}
    assert len(bundle.catalogue) == 0
    assert bundle.sites[site].entry.activation == imported.quality.to_json()
    ours, original = bundle.sites[site].weights, shipped(site)
    if ours.architecture != "topk":
        x = {**vision, **decoder}[site][:200]
        torch.testing.assert_close(
            ours.decode(ours.encode(x)),
            original.decode(original.encode(x)),
            atol=1e-3,
            rtol=1e-3,
        )


def refused(tmp_path, request, error, match):
    with pytest.raises(error, match=match):
        import_sae(request)
    assert not (tmp_path / "bundle").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


def test_a_wrong_orientation_is_refused(tmp_path, request_for, decoder):
    sae = square(decoder["decoder.1"])
    good = gemma_scope(tmp_path / "good", sae)
    assert import_sae(request_for(good, "decoder.1", out=tmp_path / "fine"))
    turned = replace(sae, W_enc=sae.W_enc.T)
    bad = gemma_scope(tmp_path / "bad", turned)
    hint = "explains -.*With W_enc transposed it would be 1.00"
    request = request_for(bad, "decoder.1")
    refused(tmp_path, request, ReconstructionError, hint)


def test_a_wrong_b_dec_convention_is_refused(tmp_path, request_for):
    folder = LAYOUTS["sae_lens"](tmp_path / "foreign", shipped("vision"))
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["apply_b_dec_to_input"] = False
    (folder / "cfg.json").write_text(json.dumps(cfg))
    hint = "explains -.*With b_dec subtracted from the input it would be 0.87"
    refused(tmp_path, request_for(folder, "vision"), ReconstructionError, hint)


def test_a_wrong_layer_is_refused(tmp_path, request_for):
    folder = LAYOUTS["sparsify"](tmp_path / "foreign", shipped("decoder.1"))
    hint = "explains 0.8.*At decoder.1 it would be 0.9"
    refused(tmp_path, request_for(folder, "decoder.2"), ReconstructionError, hint)
    request = request_for(folder, "decoder.2", compare=False)
    imported = import_sae(request)
    # --no-compare takes it; the report still says whose it may be.
    assert imported.alike.keys() == {"decoder.1"}
    unexplained = 1 - imported.quality.explained_variance
    assert unexplained > 1.5 * (1 - imported.alike["decoder.1"])


def test_another_model_s_sae_is_refused(tmp_path, request_for):
    folder = LAYOUTS["openai"](tmp_path / "foreign", shipped("decoder.1"))
    refused(tmp_path, request_for(folder, "vision"), BundleMismatchError, "width")


def test_a_catalogue_comes_along(tmp_path, request_for):
    concepts = json.loads((TINY / "latents" / "bundle.json").read_text())["concepts"]
    for concept in concepts.values():
        concept["edits"] = {"vision": concept["edits"].get("vision")}
    concepts = {n: c for n, c in concepts.items() if c["edits"]["vision"]}
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps(concepts))
    folder = LAYOUTS["openai"](tmp_path / "foreign", shipped("vision"))
    import_sae(request_for(folder, "vision", concepts=file))
    assert set(Bundle.load(tmp_path / "bundle").catalogue) == set(concepts)

    for text, error, word in (
        ('{"dog": {"domain": "objects"}}', BundleCorruptError, "edits"),
        ('{"a": 1, "a": 2}', BundleCorruptError, "twice"),
        ("[", BundleCorruptError, "object of concepts"),
        (None, BundleNotFoundError, "no catalogue"),
    ):
        file.unlink() if text is None else file.write_text(text)
        request = request_for(folder, "vision", out=tmp_path / "b2", concepts=file)
        with pytest.raises(error, match=word):
            import_sae(request)


def test_a_catalogue_of_another_site_is_refused(tmp_path, request_for):
    edits = {"latents": [1], "gamma": [0.0], "shift": [0.0], "gate": [0.0]}
    concept = {"domain": "objects", "edits": {"decoder.1": edits}}
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps({"dog": concept}))
    folder = LAYOUTS["openai"](tmp_path / "foreign", shipped("vision"))
    request = request_for(folder, "vision", concepts=file)
    refused(tmp_path, request, BundleCorruptError, "decoder.1")


def test_what_is_there_stays_unless_it_may_go(tmp_path, request_for):
    folder = LAYOUTS["openai"](tmp_path / "foreign", shipped("vision"))
    import_sae(request_for(folder, "vision"))
    before = Bundle.load(tmp_path / "bundle").digest
    with pytest.raises(ConfigError, match="--overwrite"):
        import_sae(request_for(folder, "vision"))
    worse = request_for(folder, "vision", overwrite=True, min_explained_variance=0.99)
    with pytest.raises(ReconstructionError):
        import_sae(worse)
    assert Bundle.load(tmp_path / "bundle").digest == before
    other = LAYOUTS["sparsify"](tmp_path / "other", shipped("vision"))
    import_sae(request_for(other, "vision", overwrite=True))
    assert Bundle.load(tmp_path / "bundle").digest != before


def test_a_folder_of_something_else_is_never_replaced(tmp_path, request_for):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").touch()
    with pytest.raises(BundleError, match="thesis.tex"):
        import_sae(request_for("x", "vision", overwrite=True))


@pytest.mark.parametrize(
    ("there", "mishap", "status", "word"),
    [
        # A file may not grow beyond 1 MB: as on a full disk, the write itself fails.
        (
            False,
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))",
            2,
            "cannot write",
        ),
        (True, "kill_while_writing()", -signal.SIGKILL, ""),
    ],
)
def test_what_stops_the_writing_leaves_what_was_there(
    tmp_path, request_for, there, mishap, status, word
):
    folder = LAYOUTS["sae_lens"](tmp_path / "foreign", shipped("vision"))
    request = request_for(folder, "vision")
    if there:
        other = LAYOUTS["sparsify"](tmp_path / "other", shipped("vision"))
        import_sae(replace(request, source=str(other)))
    before = (tmp_path / "bundle").exists() and Bundle.load(tmp_path / "bundle").digest
    command = ["import", str(folder), "--model", str(MODEL), "--site", "vision"]
    command += ["--out", str(request.out), "--overwrite"]
    command += ["--activations", str(request.activations)]
    code = STOPPED.format(mishap=mishap, command=command)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    after = (tmp_path / "bundle").exists() and Bundle.load(tmp_path / "bundle").digest
    assert after == before
    import_sae(replace(request, overwrite=True))
    assert Bundle.load(tmp_path / "bundle").digest != before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"site": "decoder"}, "vision"),
        ({"k": 0}, "--k"),
        ({"min_explained_variance": float("nan")}, "share from 0 to 1"),
        ({"min_explained_variance": -3.0}, "share from 0 to 1"),
        ({"pictures": TINY}, "either"),
        ({"activations": None, "texts": TINY}, "no texts"),
    ],
)
def test_requests_that_make_no_sense(request_for, options, word):
    site = options.pop("site", "vision")
    with pytest.raises(ConfigError, match=word):
        request_for("x", site, **options)


def test_a_layer_the_model_has_not(tmp_path, request_for):
    folder = LAYOUTS["openai"](tmp_path / "foreign", shipped("decoder.1"))
    request = request_for(folder, "decoder.7", activations=None)
    refused(tmp_path, request, ConfigError, "4 decoder layers")
