# SPDX-License-Identifier: Apache-2.0
"""An SAE is read from a bundle of the right model, or from what SAELens saved."""

import pytest

from tests.places import TINY
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.bundle.served_sae import is_served_sae, read_sae
from vllm_sauce.errors import BundleMismatchError, ConfigError


def test_a_bundle_of_another_model_is_refused():
    other = fingerprint_model(TINY / "model").model_copy(
        update={"weights_sha256": "0" * 64}
    )
    with pytest.raises(BundleMismatchError, match="weights_sha256"):
        read_sae(TINY / "latents", "vision", other)
    own = fingerprint_model(TINY / "model")
    with pytest.raises(ConfigError, match="has SAEs at decoder.1, vision, not"):
        read_sae(TINY / "latents", "decoder.0", own)


def test_what_must_be_imported_first_is_no_served_sae(tmp_path):
    assert is_served_sae(TINY / "latents")
    assert not is_served_sae(tmp_path) and not is_served_sae(tmp_path / "nowhere")
    for text, served in (
        ('{"architecture": "topk"}', True),
        ('{"d_in": 4}', False),
        ("[1]", False),
        ("{", False),
    ):
        (tmp_path / "cfg.json").write_text(text)
        assert is_served_sae(tmp_path) == served
