# SPDX-License-Identifier: Apache-2.0
"""What every loader's test needs: numbers, and SAELens' readers fed from disk."""

import json

import pytest
import torch

from vllm_sauce.sae.formats import read_checkpoint
from vllm_sauce.sae.formats.registry import format_of

D_MODEL, D_SAE = 6, 17


def detect_format(path):
    """Return the name of the format that a file's or folder's content is in."""
    return format_of(read_checkpoint(path))


def numbers(*shape, seed=0, scale=1.0):
    """Return random numbers that differ from call to call by their seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def check_equal(ours, acts_of, decoded_of, scale=2.0):
    """Compare what an SAE encodes and decodes with the original's functions."""
    x = numbers(40, ours.d_model, seed=99, scale=scale) + 0.3
    acts = ours.encode(x)
    torch.testing.assert_close(acts, acts_of(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.decode(acts, x), decoded_of(acts_of(x), x), atol=1e-5, rtol=1e-4
    )
    assert 0 < int((acts > 0).sum()) < acts.numel()


def check_against_sae_lens(ours, cfg, state, **changes):
    """Compare with SAELens' class built from what its own reader returned."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    cfg = {**handle_config_defaulting(cfg), "dtype": "float32", **changes}
    theirs = SAE.from_dict(cfg)
    theirs.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    with torch.no_grad():
        check_equal(ours, theirs.encode, lambda acts, x: theirs.decode(acts))
    return theirs


@pytest.fixture
def sae_lens_hub(tmp_path, monkeypatch):
    """Let SAELens' readers find hub files under a folder; returns their module."""
    pytest.importorskip("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id, filename, subfolder="", **_):
        return str(tmp_path / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return loaders


def write_json(path, data):
    """Write a configuration; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path.parent
