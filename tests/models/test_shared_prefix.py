# SPDX-License-Identifier: Apache-2.0
"""Many questions in one pass answer as each would alone."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_edits import EditTensors
from vllm_sauce.models.site_hooks import site_hook, vision_features
from vllm_sauce.sae import SAEWeights

IMAGE = 3
PREFIX = [1, 5, *[IMAGE] * 4]
BLOCKS = [[[7, 8, 9], [10, 11]], [[12], [13, 14, 15, 16]]]
PADDED = [[[7, 8, 9, 0], [10, 11, 0, 0]], [[12, 0, 0, 0], [13, 14, 15, 16]]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=20,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.4,
        ),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config).float().eval()


def build_edit(d_model: int, seed: int) -> EditTensors:
    generator = torch.Generator().manual_seed(seed)
    sae = SAEWeights(
        W_enc=torch.randn(d_model, 6, generator=generator),
        W_dec=torch.randn(6, d_model, generator=generator),
        b_enc=torch.zeros(6),
        b_dec=torch.randn(d_model, generator=generator),
    )
    return EditTensors.build(sae, SiteEdit.uniform([0, 4], gamma=-1.0))


@pytest.mark.parametrize("sites", [(), ("vision",), ("decoder.1",), ("vision", "both")])
def test_each_answer_is_that_of_its_own_prompt(model: Any, sites: tuple[str, ...]):
    edits = {}
    if "vision" in sites:
        edits["vision"] = build_edit(16, 1)
    if set(sites) & {"decoder.1", "both"}:
        edits["decoder.1"] = build_edit(24, 2)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    sheet = Sheet(
        prefix_ids=torch.tensor(PREFIX),
        suffix_ids=torch.tensor(PADDED),
        read_block=torch.tensor([0, 1, 1]),
        read_at=torch.tensor([[2, 1, 0], [0, 3, 1]]),
    )
    features, runner = vision_features(model, pixels), SharedPrefix(model)
    if "vision" in edits:
        features = edits["vision"](features)
    with torch.inference_mode():
        hidden = runner.run_layers(sheet, runner.embed(sheet, features), edits)
        together = runner.read(sheet, hidden)
    assert not torch.allclose(together[0, 0], together[1, 0])
    for row in range(2):
        for read in range(3):
            block = BLOCKS[row][int(sheet.read_block[read])]
            ids = PREFIX + block[: int(sheet.read_at[row, read]) + 1]
            with torch.inference_mode(), ExitStack() as stack:
                for site, edit in edits.items():
                    stack.enter_context(site_hook(model, site, edit))
                alone = model(
                    input_ids=torch.tensor([ids]), pixel_values=pixels[row : row + 1]
                ).logits[0, -1]
            assert torch.allclose(together[row, read], alone, atol=1e-4)


def test_an_edit_changes_answers_and_its_hook_goes_away(model: Any):
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([[*PREFIX, 7]])
    with torch.inference_mode():
        before = model(input_ids=ids, pixel_values=pixels).logits
        with site_hook(model, "vision", build_edit(16, 1)):
            edited = model(input_ids=ids, pixel_values=pixels).logits
        after = model(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before, edited)
