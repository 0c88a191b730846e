# SPDX-License-Identifier: Apache-2.0
"""Random models with towers or language models that no other family has."""

from __future__ import annotations

from pathlib import Path

from tests.plugin.models.parts import (
    CROP,
    D_MODEL,
    TOWER,
    Built,
    text,
    tokenizer_with,
)

_LLAMA4 = [
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
]


def llama4(tokenizer_dir: Path) -> Built:
    """Llama 4: the site is inside the tower; experts in every other layer."""
    from transformers import (
        Llama4Config,
        Llama4ForConditionalGeneration,
        Llama4ImageProcessor,
        Llama4Processor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, _LLAMA4)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    # The shuffle of four patches makes its MLP's input as wide as the tower's MLPs.
    tower = TOWER | {
        "intermediate_size": 128,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": D_MODEL,
        "projector_output_dim": D_MODEL,
        "vision_output_dim": D_MODEL,
        "rope_parameters": rope,
    }
    config = Llama4Config(
        vision_config=tower,
        text_config=text(
            tokenizer,
            rope_parameters=rope,
            intermediate_size_mlp=128,
            num_local_experts=4,
            interleave_moe_layer_step=2,
        ),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    processor = Llama4Processor(
        Llama4ImageProcessor(size=CROP, max_patches=4),
        tokenizer,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
    )
    return Built(Llama4ForConditionalGeneration(config), processor)
