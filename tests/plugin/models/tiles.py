# SPDX-License-Identifier: Apache-2.0
"""Random models with towers or language models that no other family has."""

from __future__ import annotations

from pathlib import Path

from tests.plugin.models.parts import (
    CROP,
    D_MODEL,
    SIGLIP,
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
_COHERE = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "image_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
_LFM2 = {
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
}
_GEMMA4 = {
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}


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


def aria(tokenizer_dir: Path) -> Built:
    """Aria: learnt queries read a picture in the projector, experts in all layers."""
    from transformers import (
        AriaConfig,
        AriaForConditionalGeneration,
        AriaImageProcessor,
        AriaProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, named={"image_token": "<image>"})
    # The processor makes every picture one of 70 x 70 patches. A grid of 71 x 71
    # positions: vLLM and transformers round differently where they meet at edges.
    config = AriaConfig(
        vision_config=TOWER | {"image_size": 71 * 14},
        text_config=text(
            tokenizer,
            model_type="aria_text",
            moe_num_experts=4,
            moe_topk=2,
            moe_num_shared_experts=1,
        ),
        projector_patch_to_query_dict={4900: 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pictures = AriaImageProcessor()
    processor = AriaProcessor(pictures, tokenizer, size_conversion={980: 16})
    return Built(AriaForConditionalGeneration(config), processor)


def cohere2_vision(tokenizer_dir: Path) -> Built:
    """Command A Vision: tiles, shuffled inside the projector."""
    from transformers import (
        Cohere2VisionConfig,
        Cohere2VisionForConditionalGeneration,
        Cohere2VisionImageProcessor,
        Cohere2VisionProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, named=_COHERE)
    config = Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config=text(
            tokenizer,
            model_type="cohere2",
            logit_scale=1.0,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
            tie_word_embeddings=True,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(_COHERE["image_token"]),
        alignment_intermediate_size=128,
    )
    # The processor takes the square of its patch_size for a tile's number of tokens.
    pictures = Cohere2VisionImageProcessor(size=CROP, patch_size=2, max_patches=4)
    processor = Cohere2VisionProcessor(pictures, tokenizer)
    return Built(Cohere2VisionForConditionalGeneration(config), processor)


def lfm2_vl(tokenizer_dir: Path) -> Built:
    """LFM2-VL: tiles of any size, some of the layers convolutions."""
    from transformers import (
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
    )

    tiles = [
        f"<|img_row_{row}_col_{column}|>"
        for row in range(1, 5)
        for column in range(1, 5)
    ]
    tokenizer = tokenizer_with(tokenizer_dir, tiles, named=_LFM2)
    tower = TOWER | {
        "model_type": "siglip2_vision_model",
        "patch_size": 16,
        "num_patches": 16,
        "vision_use_head": False,
    }
    config = Lfm2VlConfig(
        vision_config=tower,
        text_config=text(
            tokenizer,
            model_type="lfm2",
            # vLLM's rotary kernel for CPUs misreads the heads of this class's queries.
            num_attention_heads=1,
            head_dim=D_MODEL,
            layer_types=["conv", "full_attention"] * 2,
            block_auto_adjust_ff_dim=False,
            # transformers has dropped these, public checkpoints and vLLM have them.
            conv_dim=D_MODEL,
            block_dim=D_MODEL,
            tie_word_embeddings=True,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=D_MODEL,
    )
    pictures = Lfm2VlImageProcessor(
        tile_size=64, max_tiles=4, min_image_tokens=1, max_image_tokens=4
    )
    processor = Lfm2VlProcessor(pictures, tokenizer)
    return Built(Lfm2VlForConditionalGeneration(config), processor)


def gemma4(tokenizer_dir: Path) -> Built:
    """Gemma 4: nine patches pooled before the site, no tower for sound."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, ["<|video|>"], named=_GEMMA4)
    ids = {name: tokenizer.convert_tokens_to_ids(_GEMMA4[name]) for name in _GEMMA4}
    tower = {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 16,
        "position_embedding_size": 256,
        # The fewest soft tokens allowed; only vLLM reads it here.
        "default_output_length": 70,
    }
    config = Gemma4Config(
        vision_config=TOWER | tower,
        text_config=text(
            tokenizer,
            global_head_dim=32,
            hidden_size_per_layer_input=0,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
            tie_word_embeddings=True,
        ),
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        image_token_id=ids["image_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        audio_token_id=ids["audio_token"],
    )
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer,
        Gemma4VideoProcessor(max_soft_tokens=70),
        image_seq_length=70,
    )
    return Built(Gemma4ForConditionalGeneration(config), processor)
