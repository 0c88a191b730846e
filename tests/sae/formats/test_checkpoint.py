# SPDX-License-Identifier: Apache-2.0
"""Files are found and read, or refused with a reason; no pickle runs anything."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vllm_sauce.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.sae.formats import load_foreign, read_checkpoint


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, zipped):
    sprung = tmp_path / "sprung"
    bad = {"more": Trap(sprung), "W_enc": torch.zeros(2, 3)}
    if zipped:
        torch.save(bad, tmp_path / "ae.pt")
    else:
        (tmp_path / "ae.pt").write_bytes(pickle.dumps(bad, protocol=2))
    with pytest.raises(UnsupportedSAEError, match="mkdir") as caught:
        load_foreign(tmp_path / "ae.pt")
    assert "nothing of it was run" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not sprung.exists()


def test_an_npz_of_objects_is_refused_and_does_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(BundleCorruptError, match="numbers"):
        load_foreign(tmp_path)
    assert not sprung.exists()


def write(path):
    tensors = {"W_enc": torch.ones(20, 30), "b_enc": torch.ones(30)}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, W_enc=tensors["W_enc"].numpy(), b_enc=tensors["b_enc"].numpy())
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "a.bin"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.98])
def test_a_truncated_file_is_damaged(tmp_path, name, kept):
    path = write(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(BundleCorruptError, match=name):
        read_checkpoint(path)


def test_noise_and_other_objects_are_no_pickle_of_tensors(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"hello, this is text")
    with pytest.raises(BundleCorruptError, match="pickle"):
        read_checkpoint(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(UnsupportedSAEError, match="dict of tensors"):
        read_checkpoint(path)


def test_missing_and_many_files_are_told(tmp_path):
    with pytest.raises(BundleNotFoundError, match="no SAE at"):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(BundleNotFoundError, match="holds no file"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnsupportedSAEError, match="notes.txt"):
        read_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "layers.1").mkdir()
    write(tmp_path / "layers.1" / "sae.safetensors")
    with pytest.raises(UnsupportedSAEError, match=r"layers.1/sae.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    write(tmp_path / "one.pt")
    with pytest.raises(BundleCorruptError, match="not JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(BundleCorruptError, match="JSON object"):
        read_checkpoint(tmp_path)
