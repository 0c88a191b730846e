# SPDX-License-Identifier: Apache-2.0
"""The batched edit is the served op, at any strength."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_world import random_sae
from vllm_sauce.concepts import SPARING, TOKENS, VISION, SiteEdit
from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.models.site_edits import EditTensors, site_actions, sparing_sink
from vllm_sauce.sae import SAEWeights, reconstruct
from vllm_sauce_kernels.masked_edit.reference import masked_edit_ref


def build_sae(threshold: bool = False) -> SAEWeights:
    generator = torch.Generator().manual_seed(0)
    return SAEWeights(
        W_enc=torch.randn(8, 20, generator=generator),
        W_dec=torch.randn(20, 8, generator=generator),
        b_enc=torch.randn(20, generator=generator),
        b_dec=torch.randn(8, generator=generator),
        threshold=torch.full((20,), 0.7) if threshold else None,
        architecture="jumprelu" if threshold else "standard",
    )


EDIT = SiteEdit(
    latents=(3, 11, 4),
    gamma=(-0.5, 0.0, -2.0),
    shift=(0.0, -1.0, 0.5),
    gate=(2.0, 3.0, 4.0),
)


def test_edit_is_the_papers_edit_with_the_error_kept():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    for threshold in (False, True):
        sae = build_sae(threshold)
        edit = EditTensors.build(sae, EDIT)
        assert torch.allclose(edit(x), reconstruct(sae, x, EDIT), atol=1e-5)
        assert 0 < int((edit(x) != x).any(-1).sum()) < 50


def test_edit_is_the_served_op():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    edit = EditTensors.build(build_sae(), EDIT, strength=1.5)
    served, edited = x.clone(), torch.zeros(1, dtype=torch.long)
    masked_edit_ref(
        served,
        None,
        torch.zeros(50, dtype=torch.int32),
        torch.arange(3, dtype=torch.int32)[None],
        edit.scale[None],
        edit.shift[None],
        edit.gate[None],
        torch.tensor([3], dtype=torch.int32),
        edit.W_enc.T.contiguous(),
        edit.W_dec,
        edit.b_enc,
        edited,
    )
    assert torch.allclose(edit(x), served, atol=1e-5)
    assert (served != x).any()


def test_the_sink_is_spared_where_prompts_begin():
    """Of a batch padded on the left, and not in the steps after a prompt."""
    sae, edit = build_sae(), replace(EDIT, tokens=SPARING)
    (action,) = site_actions({"decoder.0": sae}, {"decoder.0": edit}, 1.0).values()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
    first = torch.tensor([0, 2, 1])
    whole, spared = action(x), sparing_sink(action, first)(x)
    changed = (spared != x).any(-1)
    assert torch.equal(
        changed, (whole != x).any(-1) & (torch.arange(5) != first[:, None])
    )
    assert torch.equal(spared[changed], whole[changed])
    assert torch.equal(sparing_sink(action)(x)[:, 1:], whole[:, 1:])
    assert torch.equal(sparing_sink(action)(x[:, :1]), action(x[:, :1]))
    every = replace(EDIT, tokens=TOKENS)
    (action,) = site_actions({"decoder.0": sae}, {"decoder.0": every}, 1.0).values()
    assert sparing_sink(action, first) is action


@pytest.mark.parametrize("tokens", [("image",), ("prompt", "generated")])
def test_pictures_and_text_are_edited_alone(tokens):
    """The sink is neither's."""
    sae, edit = build_sae(), replace(EDIT, tokens=tokens)
    (action,) = site_actions({"decoder.0": sae}, {"decoder.0": edit}, 1.0).values()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    image = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]).bool()
    whole, edited = action(x), sparing_sink(action, None, image)(x)
    mine = image if tokens == ("image",) else ~image
    mine[:, 0] = False
    changed = (whole != x).any(-1)
    assert (changed & mine).any()
    assert (changed & ~mine).any()
    assert torch.equal(edited[mine], whole[mine])
    assert torch.equal(edited[~mine], x[~mine])
    with pytest.raises(AssertionError, match="not known"):
        sparing_sink(action)


def test_edits_of_some_tokens_are_vllms_to_tell():
    edits = {"decoder.0": replace(EDIT, tokens=("generated",))}
    with pytest.raises(UnsupportedFeatureError, match="of generated: ask vLLM"):
        site_actions({"decoder.0": build_sae()}, edits, 1.0)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "normed"])
def test_every_kind_of_sae_is_edited_in_proportion(kind):
    sae = random_sae(kind)
    edit = SiteEdit(
        latents=(3, 11), gamma=(-0.5, 0.0), shift=(0.0, -1.0), gate=(0.5, 0)
    )
    edits = {VISION: edit}
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(5))
    whole = reconstruct(sae, x, edit) - x
    assert whole.abs().max() > 0.1
    for strength in (0.25, 1.0, 3.0):
        changed = site_actions({VISION: sae}, edits, strength)[VISION](x)
        assert torch.allclose(changed - x, strength * whole, atol=1e-4)
    half = site_actions({VISION: sae}, edits, 1.0)[VISION](x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert site_actions({VISION: sae}, edits, 0) == {}
