# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch

from vllm_sauce.bundle import Bundle, fingerprint_model, writing
from vllm_sauce.concepts import SPARING, TOKENS, Catalogue, Concept, SiteEdit
from vllm_sauce.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.sae import SAEWeights

D_MODEL, D_SAE = 4, 8
SAE_FILE = "sae.vision.safetensors"


def build_sae(architecture="standard", fill=None):
    rng = torch.Generator().manual_seed(0)
    sae = SAEWeights(
        W_enc=torch.randn(D_MODEL, D_SAE, generator=rng),
        W_dec=torch.randn(D_SAE, D_MODEL, generator=rng),
        b_enc=torch.zeros(D_SAE),
        b_dec=torch.zeros(D_MODEL),
        threshold=torch.ones(D_SAE) if architecture == "jumprelu" else None,
        architecture=architecture,
    )
    if fill is not None:
        sae.b_enc[0] = fill
    return sae


def write_model(path, **changes):
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {
            "hidden_size": D_MODEL,
            "num_hidden_layers": 2,
            "vocab_size": 9,
        },
        "vision_config": {"hidden_size": D_MODEL, "image_size": 56, "patch_size": 14},
    }
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def build_bundle(model_dir, name="dog", fill=None):
    dog = Concept(
        name=name,
        domain="objects",
        edits={
            "vision": SiteEdit.uniform([1, 7], gate=0.25),
            "decoder.1": SiteEdit.uniform([0]),
        },
        provenance={"method": "share_difference", "k": 2},
        scores={"UAg": 0.9, "HM": None},
    )
    sites = {"vision": build_sae(fill=fill), "decoder.1": build_sae("jumprelu")}
    return Bundle.build(
        fingerprint_model(model_dir), sites, Catalogue([dog]), {"vision": {"l0": 3.5}}
    )


def test_any_user_may_read_a_saved_bundle(bundle_dir):
    for path in bundle_dir.iterdir():
        assert path.stat().st_mode & 0o444 == 0o444


def edit_json(folder, change):
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def as_version(number):
    """Return the change that makes a bundle one of before version 3."""

    def change(data):
        data["version"] = number
        del data["fingerprint"]["config"]

    return change


def rehash(folder):
    digest = hashlib.sha256((folder / SAE_FILE).read_bytes()).hexdigest()
    edit_json(folder, lambda data: data["sites"]["vision"].update(sha256=digest))


@pytest.mark.parametrize("weights", [True, False])
def test_round_trip(bundle_dir, model_dir, weights):
    built, loaded = build_bundle(model_dir), Bundle.load(bundle_dir, weights=weights)
    assert loaded.digest == built.digest
    raw = (bundle_dir / "bundle.json").read_bytes()
    assert loaded.digest == hashlib.sha256(raw).hexdigest()
    assert loaded.fingerprint == built.fingerprint
    assert dict(loaded.catalogue) == dict(built.catalogue)
    assert loaded.sites["vision"].entry.activation == {"l0": 3.5}
    if not weights:
        with pytest.raises(BundleError, match="weights=False"):
            _ = loaded.sites["vision"].weights
        return
    for site, sae in built.sites.items():
        tensors = loaded.sites[site].weights.tensors()
        assert tensors.keys() == sae.weights.tensors().keys()
        for name, tensor in sae.weights.tensors().items():
            assert torch.equal(tensors[name], tensor)


CORRUPTIONS = {
    "unknown key": lambda d: d.update(more=1),
    "unknown nested key": lambda d: d["sites"]["vision"].update(more=1),
    "other format": lambda d: d.update(format="zip"),
    "no sites": lambda d: d.update(sites={}),
    "unknown site": lambda d: d["sites"].update(audio=d["sites"].pop("vision")),
    "layer out of range": lambda d: d["sites"].update(
        {"decoder.2": d["sites"].pop("decoder.1")}
    ),
    "edit elsewhere": lambda d: d["concepts"]["dog"]["edits"].update(
        {"decoder.0": d["concepts"]["dog"]["edits"]["vision"]}
    ),
    "path": lambda d: d["sites"]["vision"].update(file="../" + SAE_FILE),
    "pickle": lambda d: d["sites"]["vision"].update(file="sae.vision.pt"),
    "shared file": lambda d: d["sites"].update(vision=d["sites"]["decoder.1"]),
    "text for a number": lambda d: d["sites"]["vision"].update(d_sae="8"),
    "other shape": lambda d: d["sites"]["vision"].update(d_model=D_MODEL + 1),
    "other hash": lambda d: d["sites"]["vision"].update(sha256="0" * 64),
    "one at once": lambda d: d.update(together={"1": {"kept name": 1.0}}),
    "no number at once": lambda d: d.update(together={"ten": {"kept name": 1.0}}),
    "no finite share": lambda d: d.update(together={"9": {"kept": float("nan")}}),
    "empty name": lambda d: d["concepts"].update({"": d["concepts"]["dog"]}),
    **{
        f"edit {field}={value}": lambda d, f=field, v=value: d["concepts"]["dog"][
            "edits"
        ]["vision"].update({f: v})
        for field, value in [
            ("latents", [1, 8]),
            ("latents", [1, 1]),
            ("latents", [1, -1]),
            ("latents", [1]),
            ("gamma", [0.0, float("nan")]),
            ("shift", [0.0, float("inf")]),
            ("gate", [0.0, -1.0]),
        ]
    },
}


@pytest.mark.parametrize("change", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_content_that_breaks_the_format_is_refused(bundle_dir, change):
    edit_json(bundle_dir, change)
    with pytest.raises(BundleCorruptError):
        Bundle.load(bundle_dir, weights=False)


def test_another_version_is_named(bundle_dir):
    edit_json(bundle_dir, lambda data: data.update(version=4))
    with pytest.raises(BundleCorruptError, match=r"versions \(1, 2, 3\), got 4"):
        Bundle.load(bundle_dir)


def test_a_bundle_of_version_1_edits_every_token(bundle_dir):
    """As it did when it was made; a later one says which."""

    def without_tokens(data):
        for concept in data["concepts"].values():
            for edit in concept["edits"].values():
                del edit["tokens"]

    new = Bundle.load(bundle_dir, weights=False).catalogue
    assert {e.tokens for c in new.values() for e in c.edits.values()} == {SPARING}
    assert new.editing_sink() == ()
    edit_json(bundle_dir, without_tokens)
    with pytest.raises(BundleCorruptError, match="version 3 names the tokens"):
        Bundle.load(bundle_dir, weights=False)
    edit_json(bundle_dir, as_version(1))
    old = Bundle.load(bundle_dir, weights=False).catalogue
    assert {e.tokens for c in old.values() for e in c.edits.values()} == {TOKENS}
    assert old.editing_sink() == tuple(s for s in old.sites() if s != "vision") != ()


def test_figures_of_many_at_once_are_kept(bundle_dir):
    """Under another digest; the edits and the weights are as they were."""
    before = Bundle.load(bundle_dir)
    told = {5: {"kept name": 0.5, "n": 4}, 10: {"kept name": 0.25, "n": 4}}
    before.with_figures(before.catalogue, told).save(bundle_dir)
    after = Bundle.load(bundle_dir)
    assert before.together == {} and after.together == told
    assert after.digest != before.digest
    assert dict(after.catalogue) == dict(before.catalogue)
    assert after.sites["vision"].entry == before.sites["vision"].entry
    with pytest.raises(AssertionError):
        before.with_figures(Catalogue(), told)
    edit_json(bundle_dir, lambda data: data.update(version=1))
    with pytest.raises(BundleCorruptError, match="version 1 knows no figures of sev"):
        Bundle.load(bundle_dir, weights=False)


def test_the_same_key_twice_is_refused(bundle_dir):
    path = bundle_dir / "bundle.json"
    text = path.read_text().replace('"version"', '"version": 1, "version"', 1)
    path.write_text(text)
    with pytest.raises(BundleCorruptError, match="twice"):
        Bundle.load(bundle_dir)


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"NaN"])
def test_broken_json_is_refused(bundle_dir, raw):
    (bundle_dir / "bundle.json").write_bytes(raw)
    with pytest.raises(BundleCorruptError):
        Bundle.load(bundle_dir)


@pytest.mark.parametrize("architecture", ["temporal", "gated"])
def test_unsupported_architectures_are_named(bundle_dir, architecture):
    edit_json(
        bundle_dir,
        lambda data: data["sites"]["vision"].update(architecture=architecture),
    )
    with pytest.raises(UnsupportedSAEError, match=architecture):
        Bundle.load(bundle_dir, weights=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "topk"}, "topk needs k"),
        ({"k": 3}, "k is for topk"),
    ],
)
def test_k_belongs_to_topk(bundle_dir, change, says):
    edit_json(bundle_dir, lambda data: data["sites"]["vision"].update(change))
    with pytest.raises(UnsupportedSAEError, match=says):
        Bundle.load(bundle_dir, weights=False)


@pytest.mark.parametrize("name", ["bundle.json", SAE_FILE])
def test_missing_files_are_not_found(bundle_dir, name):
    (bundle_dir / name).unlink()
    with pytest.raises(BundleNotFoundError, match=name):
        Bundle.load(bundle_dir)


@pytest.mark.parametrize("name", ["bundle.json", SAE_FILE])
def test_links_out_of_the_bundle_are_refused(bundle_dir, tmp_path, name):
    (bundle_dir / name).rename(tmp_path / name)
    (bundle_dir / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleCorruptError, match="link"):
        Bundle.load(bundle_dir)


@pytest.mark.parametrize("length", [0, 4, 100, -4])
def test_truncated_weights_are_refused_even_with_a_fitting_hash(bundle_dir, length):
    path = bundle_dir / SAE_FILE
    path.write_bytes(path.read_bytes()[:length])
    rehash(bundle_dir)
    with pytest.raises(BundleCorruptError):
        Bundle.load(bundle_dir, weights=False)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"W_enc": 1}', b'{"W_enc": {"shape": [4, 8]}}']
)
def test_bad_headers_are_refused(bundle_dir, header):
    (bundle_dir / SAE_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    rehash(bundle_dir)
    with pytest.raises(BundleCorruptError):
        Bundle.load(bundle_dir, weights=False)


def test_one_flipped_bit_is_refused(bundle_dir):
    path = bundle_dir / SAE_FILE
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleCorruptError, match="SHA-256"):
        Bundle.load(bundle_dir, weights=False)


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, model_dir, fill):
    build_bundle(model_dir, fill=fill).save(tmp_path / "bundle")
    with pytest.raises(BundleCorruptError, match="finite"):
        Bundle.load(tmp_path / "bundle")


def test_saving_replaces_a_bundle_and_leaves_no_rest(tmp_path, model_dir, bundle_dir):
    other = build_bundle(model_dir, name="cat")
    other.save(bundle_dir)
    assert Bundle.load(bundle_dir).digest == other.digest
    assert {path.name for path in tmp_path.iterdir()} == {"model", "bundle"}


@pytest.mark.parametrize("step", ["write", "flush", "swap", "interrupt"])
def test_a_failed_save_leaves_the_old_bundle(
    tmp_path, model_dir, bundle_dir, monkeypatch, step
):
    before = Bundle.load(bundle_dir).digest

    def no_space(*args, **kwargs):
        if step == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "write":
        monkeypatch.setattr("vllm_sauce.sae.tensors_file.write_tensors", no_space)
    elif step == "flush":
        monkeypatch.setattr(writing, "sync", no_space)
    else:
        # Fails when the new folder is to take the place of the old, already moved.
        rename = Path.rename
        monkeypatch.setattr(
            Path,
            "rename",
            lambda path, target: (
                no_space() if ".new-" in path.name else rename(path, target)
            ),
        )
    interrupted = step == "interrupt"
    failure, words = (KeyboardInterrupt, None) if interrupted else (OSError, "space")
    with pytest.raises(failure, match=words):
        build_bundle(model_dir, name="cat").save(bundle_dir)
    monkeypatch.undo()
    assert Bundle.load(bundle_dir).digest == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "bundle"}


def test_saving_over_something_else_is_refused(tmp_path, model_dir):
    with pytest.raises(BundleError, match="no bundle's file"):
        build_bundle(model_dir).save(model_dir)
    assert (model_dir / "model.safetensors").read_bytes() == b"weights"


def test_renamed_shards_are_another_model(model_dir):
    before = fingerprint_model(model_dir)
    (model_dir / "model.safetensors").rename(model_dir / "renamed.safetensors")
    assert fingerprint_model(model_dir) != before


def test_a_bundle_that_could_not_be_loaded_cannot_be_built(model_dir):
    fingerprint, sites = fingerprint_model(model_dir), {"vision": build_sae()}
    with pytest.raises(BundleCorruptError, match="l0"):
        Bundle.build(fingerprint, sites, Catalogue(), {"vision": {"l0": float("nan")}})
    out_of_range = Concept(
        name="dog", domain="objects", edits={"vision": SiteEdit.uniform([D_SAE])}
    )
    with pytest.raises(BundleCorruptError, match="d_sae"):
        Bundle.build(fingerprint, sites, Catalogue([out_of_range]))


def test_reader_and_maths_know_the_same_architectures():
    from vllm_sauce.bundle import bundle
    from vllm_sauce.sae import ARCHITECTURES

    assert bundle._ARCHITECTURES == ARCHITECTURES
