# SPDX-License-Identifier: Apache-2.0
"""A random Llama 3.2 Vision, whose text attends to pictures across."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.plugin.models.parts import CROP, D_VISION, SIDE, Built, text, tokenizer_with

WORD = "<|image|>"


def mllama(tokenizer_dir: Path) -> Built:
    """Two of six layers cross; the tower's last layer and two before it, four tiles."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    tokenizer = tokenizer_with(tokenizer_dir, named={"image_token": WORD})
    # As in the public model the word is the first beyond the vocabulary.
    word = tokenizer.convert_tokens_to_ids(WORD)
    assert word == len(tokenizer) - 1
    written = text(
        tokenizer,
        vocab_size=word,
        num_hidden_layers=6,
        cross_attention_layers=[2, 4],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    )
    written.pop("head_dim")
    config = MllamaConfig(
        vision_config={
            "hidden_size": D_VISION,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "vision_output_dim": 3 * D_VISION,
            "image_size": SIDE,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
        },
        text_config=written,
        image_token_index=word,
    )
    pictures = MllamaImageProcessor(size=CROP, max_image_tiles=4)
    return Built(
        MllamaForConditionalGeneration(config), MllamaProcessor(pictures, tokenizer)
    )


def inputs(processor: Any, ids: Sequence[int], picture: Any = None) -> dict[str, Any]:
    """Return what transformers' model takes of a prompt of these tokens.

    Its processor writes a word before a prompt that has none, so the prompt is given
    as tokens, and the mask made as it does.
    """
    from transformers.models.mllama import processing_mllama as made

    found: dict[str, Any] = {"input_ids": torch.tensor([list(ids)])}
    if picture is None:
        return found
    shown = dict(processor.image_processor([[picture]], return_tensors="pt"))
    tiles = shown.pop("num_tiles")
    spans = made.get_cross_attention_token_mask(list(ids), processor.image_token_id)
    mask = made.convert_sparse_cross_attention_mask_to_dense(
        [spans], tiles, processor.image_processor.max_image_tiles, len(ids)
    )
    return found | shown | {"cross_attention_mask": torch.from_numpy(mask)}
