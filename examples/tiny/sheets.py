# SPDX-License-Identifier: Apache-2.0
"""What the exam's sheets are made of, and read with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_hooks import SiteFn

BATCH_PICTURES = 16


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
def answer_logits(
    runner: SharedPrefix, sheet: Sheet, vision: Tensor, edits: Mapping[str, SiteFn]
) -> Tensor:
    """Return the answers' logits under some edits.

    Shapes: vision [num_pictures, patches, d_model]
        -> [num_pictures, num_reads, vocab]
    """
    answers = []
    for index in torch.arange(len(sheet)).split(BATCH_PICTURES):
        part, x = sheet.rows(index), vision[index]
        if VISION in edits:
            x = edits[VISION](x)
        hidden = runner.run_layers(part, runner.embed(part, x), edits)
        answers.append(runner.read(part, hidden))
    return torch.cat(answers)
