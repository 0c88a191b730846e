# SPDX-License-Identifier: Apache-2.0
"""The table of architectures: what a row says of a model's config."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import ConfigError, UnsupportedFeatureError
from vllm_sauce.models.architectures import vision_row


def config_of(architecture: str | None, **vision: Any) -> Any:
    return SimpleNamespace(
        architectures=[architecture] if architecture else None,
        model_type="some",
        vision_config=SimpleNamespace(hidden_size=32, **vision),
        downsample_ratio=0.5,
        vision_feature_layer=[-2, -5],
    )


def test_a_deepstack_has_a_site_for_each_depth() -> None:
    model = "Qwen3VLForConditionalGeneration"
    config = config_of(model, deepstack_visual_indexes=[8, 16, 24])
    assert vision_row(config).modules(config) == {
        "vision": "visual.merger",
        "vision.1": "visual.deepstack_merger_list.0",
        "vision.2": "visual.deepstack_merger_list.1",
        "vision.3": "visual.deepstack_merger_list.2",
    }
    without = config_of(model)
    assert set(vision_row(without).modules(without)) == {"vision"}


@pytest.mark.parametrize(
    ("model", "width"),
    [
        ("LlavaForConditionalGeneration", 64),  # two layers side by side
        ("InternVLForConditionalGeneration", 128),  # four patches
        ("Qwen2VLForConditionalGeneration", 48),
        ("Glm4vForConditionalGeneration", 80),
        ("Gemma3ForConditionalGeneration", 32),
    ],
)
def test_widths_are_those_of_what_enters_the_connector(model: str, width: int) -> None:
    config = config_of(model, embed_dim=48, out_hidden_size=80)
    assert vision_row(config).width(config) == width


def test_what_has_no_row_is_refused_with_the_place_to_look() -> None:
    with pytest.raises(
        UnsupportedFeatureError, match=r"of MolmoForCausalLM .*models.md"
    ):
        vision_row(config_of("MolmoForCausalLM"))
    with pytest.raises(UnsupportedFeatureError, match="vision site of some"):
        vision_row(config_of(None))
    text = SimpleNamespace(architectures=["LlamaForCausalLM"], model_type="llama")
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no vision site"):
        vision_row(text)
