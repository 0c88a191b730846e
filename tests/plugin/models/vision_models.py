# SPDX-License-Identifier: Apache-2.0
"""Tiny random vision-language models, one an architecture, laid out as public ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.plugin.models import crops, crossing, grids, tiles
from tests.plugin.models.parts import Built, randomise, save

_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
_GLM = "<|begin_of_image|><|image|><|end_of_image|>"


def _pictures() -> dict[str, int]:
    return {"image": 2}


def _no_videos() -> dict[str, int]:
    return {"image": 2, "video": 0}


@dataclass(frozen=True)
class VisionModel:
    """How one architecture is built and asked."""

    build: Callable[[Path], Built]
    # What stands for a picture in a prompt; nothing where pictures go before it.
    word: str
    # vLLM's limit_mm_per_prompt.
    limits: dict[str, int] = field(default_factory=_pictures)
    # bfloat16 where the CPU's kernels take nothing else.
    dtype: str = "float32"
    # All of transformers' token_type_ids, where its default lets the picture's rows see
    # later ones: vLLM's CPU backend lets none.
    token_type: int | None = None
    # Only square pictures compare: vLLM's tower attends to the padding of others.
    square: bool = False


VISION_MODELS: dict[str, VisionModel] = {
    "llava": VisionModel(crops.llava, "<image>"),
    "llava_pixtral": VisionModel(crops.llava_pixtral, "[IMG]"),
    "llava_next": VisionModel(crops.llava_next, "<image>"),
    "llava_onevision": VisionModel(crops.llava_onevision, "<image>", _no_videos()),
    "qwen2_vl": VisionModel(grids.qwen2_vl, _QWEN, _no_videos()),
    "qwen2_5_vl": VisionModel(grids.qwen2_5_vl, _QWEN, _no_videos()),
    "qwen3_vl": VisionModel(grids.qwen3_vl, _QWEN, _no_videos()),
    "qwen3_vl_moe": VisionModel(grids.qwen3_vl_moe, _QWEN, _no_videos()),
    "qwen3_5": VisionModel(grids.qwen3_5, _QWEN, _no_videos(), "bfloat16"),
    "glm4v": VisionModel(grids.glm4v, _GLM, _no_videos()),
    "glm4v_moe": VisionModel(grids.glm4v_moe, _GLM, _no_videos()),
    "llama4": VisionModel(tiles.llama4, "<|image|>"),
    "internvl": VisionModel(crops.internvl, "<IMG_CONTEXT>", _no_videos()),
    "mistral3": VisionModel(crops.mistral3, "[IMG]"),
    "idefics3": VisionModel(crops.idefics3, "<image>"),
    "smolvlm": VisionModel(crops.smolvlm, "<image>"),
    "gemma3": VisionModel(crops.gemma3, "<start_of_image>", token_type=0),
    "paligemma": VisionModel(crops.paligemma, "", {"image": 1}, token_type=1),
    "aria": VisionModel(tiles.aria, "<image>", square=True),
    "cohere2_vision": VisionModel(tiles.cohere2_vision, "<|IMG_PATCH|>"),
    "lfm2_vl": VisionModel(tiles.lfm2_vl, "<image>"),
    "mllama": VisionModel(crossing.mllama, "<|image|>", {"image": 1}),
    "gemma4": VisionModel(tiles.gemma4, "<|image|>", _no_videos()),
}


def write_vision_model(folder: Path, name: str, tokenizer_dir: Path) -> Path:
    """Write the model called `name`, its processor and tokenizer into `folder`."""
    built = VISION_MODELS[name].build(tokenizer_dir)
    randomise(built.model, VISION_MODELS[name].dtype == "bfloat16")
    save(folder, built)
    return folder
