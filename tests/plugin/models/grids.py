# SPDX-License-Identifier: Apache-2.0
"""Random models of the Qwen-VL and GLM-V families, whose sites are called mergers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.plugin.models.parts import (
    D_MODEL,
    D_VISION,
    SIDE,
    Built,
    text,
    tokenizer_with,
)

_QWEN = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_GLM = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
_TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": D_VISION,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": D_MODEL,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    # Not half of the width, so that loaders see which way round a matrix is.
    "moe_intermediate_size": 48,
    # transformers has dropped it, public checkpoints and vLLM have it.
    "norm_topk_prob": True,
}


def _pixels(patch: int) -> dict[str, int]:
    """From 4 to 64 tokens a picture."""
    return {"min_pixels": 4 * (2 * patch) ** 2, "max_pixels": 64 * (2 * patch) ** 2}


def _words(
    tokenizer_dir: Path, words: dict[str, str], more: Iterable[str] = ()
) -> tuple[Any, dict[str, int]]:
    # The processors ask the tokenizer first, and it may know another word.
    named = {name: words[f"{name}_id"] for name in ("image_token", "video_token")}
    tokenizer = tokenizer_with(tokenizer_dir, [*words.values(), *more], named)
    ids = {name: tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}
    return tokenizer, ids


def _qwen_words(tokenizer_dir: Path) -> tuple[Any, dict[str, int]]:
    return _words(tokenizer_dir, _QWEN, ["<|im_start|>", "<|im_end|>"])


def qwen2_vl(tokenizer_dir: Path) -> Built:
    """Qwen2-VL: attention over all of a picture."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, ids = _qwen_words(tokenizer_dir)
    # This config calls the tower's width embed_dim, the language model's hidden_size.
    tower = _TOWER | {"embed_dim": D_VISION, "hidden_size": D_MODEL, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text(
            tokenizer, rope_parameters=_ROPE | {"mrope_section": [4, 6, 6]}
        ),
        vision_config=tower,
        **ids,
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**_pixels(14)),
        tokenizer,
        Qwen2VLVideoProcessor(**_pixels(14)),
    )
    return Built(Qwen2VLForConditionalGeneration(config), processor)


def qwen2_5_vl(tokenizer_dir: Path) -> Built:
    """Qwen2.5-VL: attention in windows, so patches come to the merger permuted."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, ids = _qwen_words(tokenizer_dir)
    config = Qwen2_5_VLConfig(
        text_config=text(
            tokenizer, rope_parameters=_ROPE | {"mrope_section": [4, 6, 6]}
        ),
        vision_config=_TOWER | {"window_size": 56, "fullatt_block_indexes": [1]},
        **ids,
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**_pixels(14)),
        tokenizer,
        Qwen2VLVideoProcessor(**_pixels(14)),
    )
    return Built(Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(tokenizer_dir: Path) -> Built:
    """Qwen3-VL: two of the tower's layers have mergers of their own."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer, ids = _qwen_words(tokenizer_dir)
    config = Qwen3VLConfig(
        text_config=text(tokenizer, rope_parameters=_qwen3_rope()),
        vision_config=_qwen3_tower(),
        **ids,
    )
    return Built(Qwen3VLForConditionalGeneration(config), _qwen3_processor(tokenizer))


def qwen3_vl_moe(tokenizer_dir: Path) -> Built:
    """Qwen3-VL with experts."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    tokenizer, ids = _qwen_words(tokenizer_dir)
    config = Qwen3VLMoeConfig(
        text_config=text(tokenizer, rope_parameters=_qwen3_rope(), **_EXPERTS),
        vision_config=_qwen3_tower(),
        **ids,
    )
    model = Qwen3VLMoeForConditionalGeneration(config)
    return Built(model, _qwen3_processor(tokenizer))


def qwen3_5(tokenizer_dir: Path) -> Built:
    """Qwen3.5: Qwen3-VL's tower without its extra mergers, layers that are linear."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    tokenizer, ids = _qwen_words(tokenizer_dir)
    rope = _qwen3_rope() | {"partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
    tower = _qwen3_tower()
    del tower["deepstack_visual_indexes"]
    config = Qwen3_5Config(
        text_config=text(
            tokenizer,
            rope_parameters=rope,
            layer_types=["linear_attention", "full_attention"] * 2,
            # The least that the CPU's kernels take.
            linear_key_head_dim=64,
            linear_value_head_dim=64,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
        ),
        vision_config=tower,
        **ids,
    )
    return Built(Qwen3_5ForConditionalGeneration(config), _qwen3_processor(tokenizer))


def _qwen3_rope() -> dict[str, Any]:
    return _ROPE | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}


def _qwen3_tower() -> dict[str, Any]:
    return _TOWER | {
        "depth": 4,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1, 2],
    }


def _qwen3_processor(tokenizer: Any) -> Any:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, **_pixels(16)),
        tokenizer,
        Qwen3VLVideoProcessor(**_pixels(16)),
    )


def glm4v(tokenizer_dir: Path) -> Built:
    """GLM-4.1V: a convolution joins four patches before the merger."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    tokenizer, ids = _words(tokenizer_dir, _GLM)
    config = Glm4vConfig(
        text_config=text(tokenizer, rope_parameters=_glm_rope(), attention_bias=True),
        vision_config=_TOWER | {"image_size": SIDE},
        **ids,
    )
    return Built(Glm4vForConditionalGeneration(config), _glm_processor(tokenizer))


def glm4v_moe(tokenizer_dir: Path) -> Built:
    """GLM-4.5V: GLM-4.1V's tower, experts behind the first layer."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    tokenizer, ids = _words(tokenizer_dir, _GLM)
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
        # transformers has dropped it, public checkpoints and vLLM have it.
        "use_qk_norm": False,
    }
    config = Glm4vMoeConfig(
        text_config=text(tokenizer, rope_parameters=_glm_rope(), **experts),
        vision_config=_TOWER | {"image_size": SIDE},
        **ids,
    )
    return Built(Glm4vMoeForConditionalGeneration(config), _glm_processor(tokenizer))


def _glm_rope() -> dict[str, Any]:
    return _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}


def _glm_processor(tokenizer: Any) -> Any:
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    # These count the pixels of two frames.
    size = {"shortest_edge": 8 * 28**2, "longest_edge": 128 * 28**2}
    return Glm4vProcessor(
        Glm4vImageProcessor(size=size), tokenizer, Glm4vVideoProcessor(size=size)
    )
