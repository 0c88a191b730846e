# SPDX-License-Identifier: Apache-2.0
"""Rows beside an SAE's latents: read, written and edited as their formula says."""

import pytest
import torch

from tests.places import TINY
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import BundleCorruptError, UnsupportedSAEError
from vllm_sauce.models.site_edits import EditTensors
from vllm_sauce.sae import Row, SAEWeights, reconstruct, with_rows, without_rows

D_MODEL, D_SAE, NUM_ROWS = 8, 12, 3


def rows():
    return [
        Row(
            concept=f"c{number}",
            kind="others",
            shrinkage=0.1,
            num_samples=(40, 60),
            d_prime=2.5,
        )
        for number in range(NUM_ROWS)
    ]


def fitted(seed=1):
    rng = torch.Generator().manual_seed(seed)
    read = torch.randn(D_MODEL, NUM_ROWS, generator=rng)
    bias = torch.randn(NUM_ROWS, generator=rng)
    return read, bias, torch.randn(NUM_ROWS, D_MODEL, generator=rng)


def merge(sae):
    read, bias, write = fitted()
    return with_rows(sae, read, bias, write, rows())


def sae_of(kind, b_dec_subtracted=True):
    rng = torch.Generator().manual_seed(0)
    return SAEWeights(
        W_enc=torch.randn(D_MODEL, D_SAE, generator=rng),
        W_dec=torch.randn(D_SAE, D_MODEL, generator=rng),
        b_enc=torch.randn(D_SAE, generator=rng),
        b_dec=torch.randn(D_MODEL, generator=rng),
        threshold=torch.rand(D_SAE, generator=rng) if kind == "jumprelu" else None,
        architecture=kind,
        k=3 if kind == "topk" else None,
        apply_b_dec_to_input=b_dec_subtracted,
    )


@pytest.mark.parametrize("b_dec_subtracted", [True, False])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", None])
def test_a_row_reads_and_writes_as_its_formula_says(kind, b_dec_subtracted):
    sae = None if kind is None else sae_of(kind, b_dec_subtracted)
    read, bias, write = fitted()
    merged = with_rows(sae, read, bias, write, rows())
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(2))
    z = torch.relu(x @ read + bias)
    torch.testing.assert_close(merged.encode(x)[:, -NUM_ROWS:], z)
    if sae is not None:
        torch.testing.assert_close(merged.encode(x)[:, :D_SAE], sae.encode(x))
    share, gate, first = 1.25, 0.35, merged.d_sae - NUM_ROWS
    edit = SiteEdit.uniform([first, first + 2], gamma=1 - share, gate=gate)
    mine = z[:, [0, 2]]
    want = x - share * torch.where(mine > gate, mine, 0.0) @ write[[0, 2]]
    torch.testing.assert_close(reconstruct(merged, x, edit), want)
    torch.testing.assert_close(EditTensors.build(merged, edit)(x), want)


def test_what_was_trained_comes_back():
    for kind in ("standard", "jumprelu"):
        sae = sae_of(kind)
        back = without_rows(merge(sae))
        assert back.rows == ()
        for name, tensor in sae.tensors().items():
            torch.testing.assert_close(back.tensors()[name], tensor, rtol=0, atol=0)


def test_latents_that_depend_on_each_other_are_left_alone():
    with pytest.raises(UnsupportedSAEError, match="fit rows without an SAE"):
        merge(sae_of("topk"))
    merged = merge(sae_of("standard"))
    with pytest.raises(UnsupportedSAEError, match="3 rows already"):
        merge(merged)


def bundle(merged):
    edit = SiteEdit.uniform([merged.d_sae - 1], gamma=-0.25, gate=0.35)
    concept = Concept(name="c2", domain="objects", edits={"vision": edit})
    return Bundle.build(
        fingerprint_model(TINY / "model"), {"vision": merged}, Catalogue([concept])
    )


def test_a_bundle_keeps_how_rows_were_fitted(tmp_path):
    merged = merge(sae_of("jumprelu"))
    bundle(merged).save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b").sites["vision"].weights
    assert loaded.rows == tuple(rows())
    for name, tensor in merged.tensors().items():
        torch.testing.assert_close(loaded.tensors()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"version": 3', '"version": 1'), "version 1"),
        (('"kind": "others"', '"kind": "elsewhere"'), "kind"),
        (('"k": null', '"k": 4'), "rows stand beside no topk SAE"),
    ],
)
def test_a_bundle_with_wrong_rows_is_refused(tmp_path, change, said):
    bundle(merge(sae_of("standard"))).save(tmp_path / "b")
    file = tmp_path / "b" / "bundle.json"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(BundleCorruptError, match=said):
        Bundle.load(tmp_path / "b")
