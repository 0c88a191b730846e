# SPDX-License-Identifier: Apache-2.0
"""Random models whose towers are CLIP's, SigLIP's, Pixtral's or InternVL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plugin.models.parts import (
    CLIP,
    CROP,
    D_MODEL,
    LINE_BREAKS,
    PIXTRAL,
    SIDE,
    SIGLIP,
    TILINGS,
    TOWER,
    Built,
    text,
    tokenizer_with,
)

_IMAGE = "<image>"
_GEMMA3 = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
_INTERNVL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_IDEFICS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": _IMAGE,
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def llava(tokenizer_dir: Path) -> Built:
    """LLaVA-1.5: one crop a picture, the tower's last layer but one."""
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, [_IMAGE])
    config = LlavaConfig(
        vision_config=CLIP,
        text_config=text(tokenizer, model_type="llama"),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        vision_feature_layer=-2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=CROP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=_IMAGE,
        num_additional_image_tokens=1,
    )
    return Built(LlavaForConditionalGeneration(config), processor)


def llava_next(tokenizer_dir: Path) -> Built:
    """LLaVA-NeXT: a picture is one crop and up to four tiles."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, [_IMAGE])
    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config=text(tokenizer, model_type="llama"),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_grid_pinpoints=TILINGS,
        vision_feature_layer=-2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=CROP, image_grid_pinpoints=TILINGS
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=_IMAGE,
        num_additional_image_tokens=1,
    )
    return Built(LlavaNextForConditionalGeneration(config), processor)


def llava_onevision(tokenizer_dir: Path) -> Built:
    """LLaVA-OneVision: tiles of pictures, frames of videos."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    video = "<video>"
    tokenizer = tokenizer_with(tokenizer_dir, [_IMAGE, video])
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=text(tokenizer, model_type="qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(video),
        image_grid_pinpoints=TILINGS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=CROP, image_grid_pinpoints=TILINGS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=CROP),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return Built(LlavaOnevisionForConditionalGeneration(config), processor)


def llava_pixtral(tokenizer_dir: Path) -> Built:
    """LLaVA's class with the tower of Pixtral-12B: pictures of any size."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer, processor = _pixtral_reader(tokenizer_dir, merged=1)
    config = LlavaConfig(
        vision_config=PIXTRAL,
        text_config=text(tokenizer, model_type="mistral"),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return Built(LlavaForConditionalGeneration(config), processor)


def mistral3(tokenizer_dir: Path) -> Built:
    """Mistral 3: Pixtral's tower, four patches merged behind the site."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer, processor = _pixtral_reader(tokenizer_dir, merged=2)
    config = Mistral3Config(
        vision_config=PIXTRAL,
        text_config=text(tokenizer, model_type="mistral"),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return Built(Mistral3ForConditionalGeneration(config), processor)


def _pixtral_reader(tokenizer_dir: Path, merged: int) -> tuple[Any, Any]:
    from transformers import PixtralImageProcessor, PixtralProcessor

    tokenizer = tokenizer_with(tokenizer_dir, ["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    pictures = PixtralImageProcessor(
        size={"longest_edge": 2 * SIDE}, patch_size={"height": 14, "width": 14}
    )
    processor = PixtralProcessor(
        pictures, tokenizer, patch_size=14, spatial_merge_size=merged
    )
    return tokenizer, processor


def internvl(tokenizer_dir: Path) -> Built:
    """InternVL as transformers has it: patches are shuffled before the site."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, named=_INTERNVL)
    config = InternVLConfig(
        vision_config=TOWER | {"image_size": [SIDE, SIDE], "patch_size": [14, 14]},
        text_config=text(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=CROP, crop_to_patches=True, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=CROP),
        image_seq_length=4,
    )
    return Built(InternVLForConditionalGeneration(config), processor)


def idefics3(tokenizer_dir: Path) -> Built:
    """Idefics3: tiles and the whole picture, shuffled inside the connector."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer, sizes = _idefics_words(tokenizer_dir), _idefics_sizes(2 * SIDE)
    config = Idefics3Config(**_idefics_config(tokenizer))
    processor = Idefics3Processor(
        Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4
    )
    return Built(Idefics3ForConditionalGeneration(config), processor)


def smolvlm(tokenizer_dir: Path) -> Built:
    """SmolVLM: Idefics3 with videos; its processor wants the package num2words."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    _count_in_digits()
    tokenizer = _idefics_words(tokenizer_dir)
    config = SmolVLMConfig(**_idefics_config(tokenizer))
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**_idefics_sizes(2 * SIDE)),
        tokenizer,
        SmolVLMVideoProcessor(**_idefics_sizes(SIDE)),
        image_seq_len=4,
    )
    return Built(SmolVLMForConditionalGeneration(config), processor)


def _count_in_digits() -> None:
    """Let this process do without num2words, which only prompts of videos need."""
    from transformers.models.smolvlm import processing_smolvlm

    if not processing_smolvlm.num2words:
        processing_smolvlm.num2words = str


def _idefics_words(tokenizer_dir: Path) -> Any:
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    tokenizer = tokenizer_with(tokenizer_dir, tiles, named=_IDEFICS)
    tokenizer.add_tokens(LINE_BREAKS)
    return tokenizer


def _idefics_sizes(longest: int) -> dict[str, Any]:
    return {
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": SIDE},
    }


def _idefics_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": TOWER,
        "text_config": text(tokenizer, model_type="llama"),
        "image_token_id": tokenizer.convert_tokens_to_ids(_IMAGE),
        "scale_factor": 2,
        "pad_token_id": 0,
    }


def gemma3(tokenizer_dir: Path) -> Built:
    """Gemma 3: one crop a picture, patches pooled inside the projector."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, named=_GEMMA3)
    tokenizer.add_tokens(LINE_BREAKS)
    ids = {name: tokenizer.convert_tokens_to_ids(_GEMMA3[name]) for name in _GEMMA3}
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3Config(
        vision_config=SIGLIP,
        text_config=text(
            tokenizer, sliding_window=64, layer_types=kinds, query_pre_attn_scalar=32
        ),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=CROP), tokenizer, image_seq_length=4
    )
    return Built(Gemma3ForConditionalGeneration(config), processor)


def paligemma(tokenizer_dir: Path) -> Built:
    """PaliGemma 2: one picture, before the prompt."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, [_IMAGE])
    # Without words for places the processor adds a thousand.
    tokenizer.add_tokens(["\n"] + [f"<loc{place:04d}>" for place in range(4)])
    config = PaliGemmaConfig(
        vision_config=SIGLIP | {"vision_use_head": False},
        text_config=text(
            tokenizer,
            model_type="gemma2",
            sliding_window=64,
            query_pre_attn_scalar=32,
            # transformers leaves out these caps (the first one in SDPA), vLLM does not.
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        projection_dim=D_MODEL,
        hidden_size=D_MODEL,
    )
    pictures = SiglipImageProcessor(size=CROP)
    pictures.image_seq_length = 16
    return Built(
        PaliGemmaForConditionalGeneration(config),
        PaliGemmaProcessor(pictures, tokenizer),
    )
