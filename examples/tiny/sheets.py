# SPDX-License-Identifier: Apache-2.0
"""What the exam's sheets are made of, and read with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION
from vllm_sauce.models.shared_prefix import Sheet
from vllm_sauce.models.site_hooks import site_hook


def pad_blocks(blocks: Sequence[Sequence[Sequence[int]]], pad_id: int) -> Tensor:
    """Return token blocks as one tensor, padded on the right.

    Shapes: [num_pictures][num_blocks][any] -> [num_pictures, num_blocks, block_len]
    """
    length = max(len(block) for row in blocks for block in row)
    padded = [
        [[*block, *[pad_id] * (length - len(block))] for block in row] for row in blocks
    ]
    return torch.tensor(padded)


def real_tokens(sheet: Sheet) -> Tensor:
    """Return which tokens are no padding. Shape [num_pictures, T] bool"""
    prefix = torch.ones(len(sheet), len(sheet.prefix_ids), dtype=torch.bool)
    return torch.cat([prefix, sheet.suffix_ids.flatten(1) != sheet.pad_id], dim=1)


@torch.inference_mode()
def vision_features(model: Any, pixel_values: Tensor, batch_size: int = 256) -> Tensor:
    """Return the vision site's activations of many pictures.

    Shapes: pixel_values [num_pictures, 3, H, W] -> [num_pictures, patches, d_model]
    """
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.float().clone())
        return x

    with site_hook(model, VISION, keep):
        for pixels in pixel_values.split(batch_size):
            model.get_image_features(pixel_values=pixels)
    return torch.cat(kept)
