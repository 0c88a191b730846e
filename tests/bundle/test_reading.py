# SPDX-License-Identifier: Apache-2.0
"""A process reads a bundle once; what is replaced on the disk is noticed."""

import hashlib
import os
import shutil

import pytest

from tests.places import TINY
from vllm_sauce.bundle import Bundle, reading
from vllm_sauce.errors import BundleCorruptError

SHIPPED = TINY / "latents"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed, each time; files may be new."""
    names = []

    def counted(path):
        names.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(reading, "file_sha256", counted)
    monkeypatch.setattr(reading, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(reading, "_hashed", {})
    reading.parse.cache_clear()
    return names


@pytest.fixture
def bundle(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    return tmp_path / "bundle"


def load(folder):
    return Bundle.load(folder, weights=False)


def test_a_start_hashes_and_parses_once(hashed, bundle):
    first, again = load(bundle), load(bundle)
    assert len(hashed) == len(set(hashed)) == len(first.sites)
    assert again.catalogue is first.catalogue and again.digest == first.digest
    assert reading.parse.cache_info().misses == 1
    # Who reads the weights hashes what is read.
    Bundle.load(bundle)
    assert len(hashed) == 2 * len(first.sites)


@pytest.mark.parametrize("how", ["written over", "another in its place"])
def test_a_replaced_file_of_equal_size_and_time_is_noticed(hashed, bundle, how):
    load(bundle)
    path = bundle / "sae.vision.safetensors"
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    if how == "written over":
        path.write_bytes(raw)
    else:
        (bundle / "new").write_bytes(raw)
        (bundle / "new").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(BundleCorruptError, match="must have SHA-256"):
        load(bundle)


def test_a_replaced_bundle_json_is_noticed(hashed, bundle):
    first = load(bundle)
    path = bundle / "bundle.json"
    path.write_bytes(path.read_bytes() + b"\n")
    again = load(bundle)
    assert again.digest != first.digest and again.catalogue is not first.catalogue


def test_a_file_that_was_just_written_is_hashed_again(hashed, bundle, monkeypatch):
    """Its next writing may get the same times."""
    monkeypatch.setattr(reading, "SETTLED_NS", 10**15)
    first = load(bundle)
    load(bundle)
    assert len(hashed) == 2 * len(first.sites)


def test_an_equal_bundle_elsewhere_is_checked_itself(hashed, bundle, tmp_path):
    load(bundle)
    shutil.copytree(bundle, tmp_path / "other")
    path = tmp_path / "other/sae.vision.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleCorruptError, match="other.*must have SHA-256"):
        load(tmp_path / "other")
