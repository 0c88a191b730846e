# SPDX-License-Identifier: Apache-2.0
"""A pointer is told from a damaged file, wherever a safetensors file is read."""

import shutil

import pytest

from tests.learning.importing.layouts import MODEL, sae_lens, shipped, sparsify
from tests.places import TINY
from vllm_sauce.bundle import Bundle, fingerprint_model, weights_sha256
from vllm_sauce.errors import BundleCorruptError, ConfigError
from vllm_sauce.files import refuse_pointer
from vllm_sauce.sae import from_sae_lens
from vllm_sauce.sae.formats import read_checkpoint

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def read_bundle(folder):
    shutil.copytree(TINY / "latents", folder / "bundle")
    (folder / "bundle" / "sae.vision.safetensors").write_text(POINTER)
    Bundle.load(folder / "bundle", weights=False)


def read_sae_lens(folder):
    sae_lens(folder, shipped("vision"))
    (folder / "sae_weights.safetensors").write_text(POINTER)
    from_sae_lens(folder)


def read_foreign(folder):
    sparsify(folder, shipped("vision"))
    (folder / "sae.safetensors").write_text(POINTER)
    read_checkpoint(folder)


def read_pickle(folder):
    (folder / "ae.pt").write_text(POINTER)
    read_checkpoint(folder)


def copied_model(folder):
    shutil.copytree(MODEL, folder / "model")
    (folder / "model" / "model.safetensors").write_text(POINTER)
    return folder / "model"


def read_model(folder):
    fingerprint_model(copied_model(folder))


def read_model_s_sizes(folder):
    fingerprint_model(copied_model(folder), weights=False)


def hash_model(folder):
    weights_sha256(copied_model(folder))


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (read_bundle, BundleCorruptError),
        (read_sae_lens, BundleCorruptError),
        (read_foreign, BundleCorruptError),
        (read_pickle, BundleCorruptError),
        (read_model, ConfigError),
        (read_model_s_sizes, ConfigError),
        (hash_model, ConfigError),
    ],
)
def test_a_pointer_is_named_with_what_to_do(tmp_path, read, kind):
    with pytest.raises(kind, match="safetensors is a git-lfs pointer|ae.pt is a") as e:
        read(tmp_path)
    assert "`git lfs pull`" in str(e.value)


@pytest.mark.parametrize("content", [b"", b"version", b"\x00" * 100])
def test_other_content_passes(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    refuse_pointer(tmp_path / "file")
