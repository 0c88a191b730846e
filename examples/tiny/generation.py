# SPDX-License-Identifier: Apache-2.0
"""Generate whole answers under edits, with transformers' own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.models.site_edits import EditTensors
from vllm_sauce.models.site_hooks import site_hook


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    pixel_values: Tensor,
    edits: Mapping[str, EditTensors],
    max_new_tokens: int = 10,
) -> list[str]:
    """Return the greedy answer to each prompt about its picture, every token edited.

    Shapes: pixel_values [num_prompts, 3, H, W]
    """
    longest = max(map(len, prompts))
    pad = int(model.generation_config.pad_token_id)
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.enter_context(site_hook(model, site, edit))
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixel_values,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    answers: list[str] = tokenizer.batch_decode(
        out[:, longest:], skip_special_tokens=True
    )
    return [answer.strip() for answer in answers]
