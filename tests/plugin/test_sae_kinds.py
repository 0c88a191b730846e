# SPDX-License-Identifier: Apache-2.0
"""SAEs that are not ReLU, through an engine (compiled, on V1).

At the decoder per-token TopK on layer-normalised input, at the tower a JumpReLU on
rescaled input; the SAE's full maths is the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.random_bundle import D_SAE, write_random_bundle
from tests.plugin.support import Ask, ReferenceModel, run
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.sae import reconstruct
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import site_rows

VISION = {
    "architecture": "jumprelu",
    "threshold": torch.full((D_SAE,), 0.3),
    "normalize_activations": "constant_norm_rescale",
}
DECODER = {"architecture": "topk", "k": 12, "normalize_activations": "layer_norm"}


class FullMaths(ReferenceModel):
    """Edits by encoding everything, as the paper does, and keeping the error."""

    def _edit(self, x: torch.Tensor, mask: Mask, site: str) -> torch.Tensor:
        rows = site_rows(mask, self.bundle.catalogue, site)
        if not rows.latents:
            return x
        edits = SiteEdit(
            latents=rows.latents,
            gamma=tuple(scale + 1 for scale in rows.scale),
            shift=rows.shift,
            gate=rows.gate,
        )
        return reconstruct(self.bundle.sites[site].weights, x, edits)


@pytest.fixture(scope="module")
def bundle_folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "bundle"
    return write_random_bundle(folder, model_dir, VISION, DECODER)


@pytest.fixture(scope="module")
@starts_engine
def llm(model_dir: Path, bundle_folder: Path) -> Iterator[Any]:
    sauce = {"bundle": str(bundle_folder)}
    yield engine(model_dir, sauce, enforce_eager=False)


def test_each_kind_edits_as_its_own_maths_does(
    llm: Any, model_dir: Path, bundle_folder: Path
) -> None:
    oracle = FullMaths(model_dir, Bundle.load(bundle_folder))
    question = "what is in the picture ?"
    asks = [
        Ask(1, question, forget)
        for forget in ((), ("seen",), ("read",), ("both",), ("seen", "read"))
    ]
    replies = run(llm, asks)
    for ask, reply in zip(asks, replies, strict=True):
        assert reply.close(oracle.reply(ask), 1e-3), ask
    for ask, reply in zip(asks[1:], replies[1:], strict=True):
        assert not reply.close(replies[0], 1e-2), ask


@pytest.mark.engine
def test_rows_that_write_against_each_other_are_proven(
    model_dir: Path, tmp_path: Path
) -> None:
    """As LEACE's do, one a direction: shifted alike they would add up to nothing."""
    write_random_bundle(tmp_path / "random", model_dir)
    random = Bundle.load(tmp_path / "random")
    saes = {}
    for site, held in random.sites.items():
        sae = held.weights
        W_enc, W_dec, b_enc = sae.W_enc.clone(), sae.W_dec.clone(), sae.b_enc.clone()
        W_enc[:, 1], W_dec[1], b_enc[1] = -W_enc[:, 0], -W_dec[0], -b_enc[0]
        saes[site] = replace(sae, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc)
    edits = dict.fromkeys(saes, SiteEdit.uniform((0, 1), gamma=0.0))
    concepts = Catalogue([Concept(name="gone", domain="random", edits=edits)])
    Bundle.build(random.fingerprint, saes, concepts).save(tmp_path / "bundle")
    sauce = {"bundle": str(tmp_path / "bundle")}
    # In float32 the sum differs from nothing by rounding.
    llm = engine(model_dir, sauce, dtype="bfloat16")
    plain, gone = run(llm, [Ask(1, "what is it ?"), Ask(1, "what is it ?", ("gone",))])
    assert not gone.close(plain, 1e-3)
